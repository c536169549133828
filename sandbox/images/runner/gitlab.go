package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// The part of a job's payload that is used here; the whole is in gitlab-runner's common/spec.
type job struct {
	ID      int    `json:"id"`
	Token   string `json:"token"`
	JobInfo struct {
		Name      string `json:"name"`
		Stage     string `json:"stage"`
		ProjectID int    `json:"project_id"`

		TimeInQueueSeconds     float64 `json:"time_in_queue_seconds"`
		ProjectJobsRunningText string  `json:"project_jobs_running_on_instance_runners_count"`
	} `json:"job_info"`
	GitInfo struct {
		Ref       string `json:"ref"`
		Sha       string `json:"sha"`
		BeforeSha string `json:"before_sha"`
	} `json:"git_info"`
	RunnerInfo struct {
		Timeout int `json:"timeout"` // seconds
	} `json:"runner_info"`
	Variables []struct {
		Key    string `json:"key"`
		Value  string `json:"value"`
		Masked bool   `json:"masked"`
	} `json:"variables"`
	Steps []struct {
		Script []string `json:"script"`
	} `json:"steps"`
	Image struct {
		Name       string   `json:"name"`
		Entrypoint []string `json:"entrypoint"`
		PullPolicy []string `json:"pull_policy"`
	} `json:"image"`
	Services []service `json:"services"`
}

// GitLab's own default, for a payload that names no timeout.
const defaultJobTimeout = time.Hour

func (j *job) timeout() time.Duration {
	if j.RunnerInfo.Timeout > 0 {
		return time.Duration(j.RunnerInfo.Timeout) * time.Second
	}
	return defaultJobTimeout
}

func (j *job) variable(key string) string {
	value := ""
	for _, variable := range j.Variables {
		if variable.Key == key {
			value = variable.Value
		}
	}
	return value
}

// How a job ended, as PUT /jobs/:id takes it.
type result struct {
	State         string `json:"state"`
	FailureReason string `json:"failure_reason,omitempty"`
	ExitCode      int    `json:"exit_code,omitempty"`
}

// errGone says that GitLab does not want to hear of this job (or runner) any more.
var errGone = errors.New("refused by GitLab")

// gitlab speaks for one runner with GitLab.
type gitlab struct {
	base     string
	token    string
	systemID string
	http     *http.Client
	counted  func(endpoint, method string, status int) // nil counts nothing
}

func newGitLab(r runner, systemID string) *gitlab {
	return &gitlab{
		base:     strings.TrimRight(r.URL, "/") + "/api/v4/",
		token:    r.Token,
		systemID: systemID,
		http:     &http.Client{Timeout: 30 * time.Second},
	}
}

func (g *gitlab) info() map[string]any {
	features := map[string]bool{
		"variables": true, "image": true, "services": true, "masking": true, "cancelable": true,
		"return_exit_code": true, "raw_variables": true, "refspecs": true, "shared": true,
	}
	return map[string]any{
		"name": "gitlab-runner-stand-in", "version": version, "platform": runtime.GOOS,
		"architecture": runtime.GOARCH, "executor": "docker", "shell": "bash", "features": features,
	}
}

// verify authenticates the runner and makes this manager known.
func (g *gitlab) verify(ctx context.Context) error {
	response, err := g.send(ctx, "POST", "runners/verify", map[string]any{"token": g.token, "system_id": g.systemID})
	if err != nil {
		return err
	}
	return expect(response, http.StatusOK)
}

// requestJob asks for a job; nil when there is none.
func (g *gitlab) requestJob(ctx context.Context) (*job, error) {
	body := map[string]any{"token": g.token, "system_id": g.systemID, "info": g.info()}
	response, err := g.send(ctx, "POST", "jobs/request", body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode == http.StatusNoContent {
		return nil, response.Body.Close()
	}
	if response.StatusCode != http.StatusCreated {
		return nil, expect(response, http.StatusCreated)
	}
	defer response.Body.Close()
	received := new(job)
	return received, json.NewDecoder(response.Body).Decode(received)
}

// updateJob tells the job's state; errGone when GitLab has ended the job itself.
func (g *gitlab) updateJob(ctx context.Context, j *job, r result) error {
	body := map[string]any{"token": j.Token, "info": g.info(), "state": r.State}
	if r.FailureReason != "" {
		body["failure_reason"], body["exit_code"] = r.FailureReason, r.ExitCode
	}
	response, err := g.send(ctx, "PUT", fmt.Sprintf("jobs/%d", j.ID), body)
	if err != nil {
		return err
	}
	ended := r.State == "running" && endedByGitLab(response)
	if err := expect(response, http.StatusOK, http.StatusAccepted); err != nil {
		return err
	}
	if ended {
		return errGone
	}
	return nil
}

// appendTrace sends a piece of the trace that starts at offset (bytes). It returns how much of the trace GitLab has
// then, and how long to wait before the next piece.
func (g *gitlab) appendTrace(ctx context.Context, j *job, offset int, piece []byte) (int, time.Duration, error) {
	request, err := http.NewRequestWithContext(
		ctx, "PATCH", g.base+fmt.Sprintf("jobs/%d/trace", j.ID), bytes.NewReader(piece))
	if err != nil {
		return offset, 0, err
	}
	request.Header.Set("Content-Type", "text/plain")
	request.Header.Set("Content-Range", fmt.Sprintf("%d-%d", offset, offset+len(piece)-1))
	request.Header.Set("JOB-TOKEN", j.Token)
	response, err := g.do(request, "patch_trace")
	if err != nil {
		return offset, 0, err
	}
	interval, _ := strconv.Atoi(response.Header.Get("X-GitLab-Trace-Update-Interval"))
	ended := endedByGitLab(response)
	_, end, _ := strings.Cut(response.Header.Get("Range"), "-")
	switch response.StatusCode {
	case http.StatusAccepted:
		err = response.Body.Close()
		if ended {
			err = errGone
		}
		return offset + len(piece), time.Duration(interval) * time.Second, err
	case http.StatusRequestedRangeNotSatisfiable:
		known, convErr := strconv.Atoi(end)
		return known, 0, errors.Join(convErr, response.Body.Close())
	default:
		return offset, 0, expect(response, http.StatusAccepted)
	}
}

func endedByGitLab(response *http.Response) bool {
	status := response.Header.Get("Job-Status")
	return status == "canceled" || status == "canceling" || status == "failed"
}

func (g *gitlab) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	encoded, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, method, g.base+path, bytes.NewReader(encoded))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Accept", "application/json")
	switch {
	case path == "jobs/request":
		return g.do(request, "request_job")
	case strings.HasPrefix(path, "jobs/"):
		return g.do(request, "update_job")
	default:
		return g.http.Do(request)
	}
}

// do sends a request and, once it is answered, counts it under the endpoint's name.
func (g *gitlab) do(request *http.Request, endpoint string) (*http.Response, error) {
	response, err := g.http.Do(request)
	if err == nil && g.counted != nil {
		g.counted(endpoint, strings.ToLower(request.Method), response.StatusCode)
	}
	return response, err
}

// expect closes the response and turns every status but those given into an error.
func expect(response *http.Response, wanted ...int) error {
	defer response.Body.Close()
	for _, status := range wanted {
		if response.StatusCode == status {
			return nil
		}
	}
	body, _ := io.ReadAll(io.LimitReader(response.Body, 500))
	err := fmt.Errorf("%s %s: %s %s", response.Request.Method, response.Request.URL.Path, response.Status, body)
	if response.StatusCode == http.StatusForbidden || response.StatusCode == http.StatusNotFound {
		return fmt.Errorf("%w: %w", errGone, err)
	}
	return err
}
