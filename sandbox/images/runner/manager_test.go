package main

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeGitLab notes what it is asked, has no jobs, and keeps the trace of the one job there is.
type fakeGitLab struct {
	mutex  sync.Mutex
	asked  []string
	trace  []byte
	state  string
	status string // Job-Status
}

func (f *fakeGitLab) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	body, _ := io.ReadAll(r.Body)
	path := strings.TrimPrefix(r.URL.Path, "/api/v4/")
	f.asked = append(f.asked, path)
	w.Header().Set("Job-Status", f.status)
	switch {
	case path == "jobs/request":
		w.WriteHeader(http.StatusNoContent)
	case strings.HasSuffix(path, "/trace"):
		start, _, _ := strings.Cut(r.Header.Get("Content-Range"), "-")
		offset, _ := strconv.Atoi(start)
		if offset <= len(f.trace) {
			f.trace = append(f.trace[:offset], body...)
			w.WriteHeader(http.StatusAccepted)
			return
		}
		w.Header().Set("Range", "0-"+strconv.Itoa(len(f.trace)))
		w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
	case r.Method == "PUT":
		var update result
		_ = json.Unmarshal(body, &update)
		f.state = update.State
	}
}

func managerOf(t *testing.T, url, content string) *manager {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	m := newManager(path, slog.New(slog.NewTextHandler(io.Discard, nil)), new(slog.LevelVar))
	m.change(t, strings.ReplaceAll(content, "http://gitlab.example", url))
	return m
}

func (m *manager) change(t *testing.T, content string) {
	t.Helper()
	if err := os.WriteFile(m.path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	m.reload(context.Background())
}

func TestABrokenConfigurationLeavesTheOldOneInForce(t *testing.T) {
	gitlab := &fakeGitLab{}
	server := httptest.NewServer(gitlab)
	defer server.Close()
	m := managerOf(t, server.URL, minimal)
	good, _ := os.ReadFile(m.path)
	m.change(t, "concurrent = [")
	if len(m.config.Runners) != 1 {
		t.Error("the broken one was taken")
	}
	m.change(t, strings.Replace(string(good), "concurrent = 2", "concurrent = 5", 1))
	if m.config.Concurrent != 5 {
		t.Error("the repaired one was not taken")
	}
	if len(gitlab.asked) != 1 || gitlab.asked[0] != "runners/verify" {
		t.Errorf("a runner is verified once, not %v", gitlab.asked)
	}
}

func TestLimitsDecideWhoMayAskForAJob(t *testing.T) {
	gitlab := &fakeGitLab{}
	server := httptest.NewServer(gitlab)
	defer server.Close()
	second := strings.Replace(minimal[strings.Index(minimal, "[["):], "abcdefgh", "zyxwvuts", 1)
	limited := strings.Replace(minimal, `executor`, "limit = 1\n  executor", 1) + second
	m := managerOf(t, server.URL, limited)
	first, other := m.config.Runners[0], m.config.Runners[1]

	slot, ok := m.take(first)
	if _, more := m.take(first); !ok || slot != 0 || more {
		t.Error("limit = 1 is not one job")
	}
	if _, ok := m.take(other); !ok {
		t.Error("another runner has its own limit")
	}
	if _, ok := m.take(other); ok {
		t.Error("concurrent = 2 is not two jobs")
	}
	gitlab.asked = nil
	m.ask(context.Background(), context.Background())
	if len(gitlab.asked) != 0 {
		t.Errorf("asked without room: %v", gitlab.asked)
	}
	m.release(first, slot)
	m.due = map[string]time.Time{}
	m.ask(context.Background(), context.Background())
	if len(gitlab.asked) != 2 {
		t.Errorf("both have room, but asked was %v", gitlab.asked)
	}
}

func TestMetricsAreThoseOfTheRealRunner(t *testing.T) {
	server := httptest.NewServer(&fakeGitLab{})
	defer server.Close()
	m := managerOf(t, server.URL, strings.Replace(minimal, `executor`, "limit = 3\n  executor", 1))
	m.systemID = "r_0123456789ab"
	r := m.config.Runners[0]
	j := jobOf(t, `{"id": 7, "job_info": {"time_in_queue_seconds": 61.5,
		"project_jobs_running_on_instance_runners_count": "0"}}`)
	m.ask(context.Background(), context.Background())
	m.runJob(context.Background(), m.gitlab(r), r, j, 0)

	answer := httptest.NewRecorder()
	m.metrics.ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
	of := `runner="` + r.shortToken() + `",runner_name="` + r.Name + `",system_id="r_0123456789ab"`
	for _, line := range []string{
		"# TYPE gitlab_runner_job_queue_duration_seconds histogram",
		`gitlab_runner_job_queue_duration_seconds_bucket{` + of + `,project_jobs_running="0",le="60"} 0`,
		`gitlab_runner_job_queue_duration_seconds_bucket{` + of + `,project_jobs_running="0",le="120"} 1`,
		`gitlab_runner_job_queue_duration_seconds_sum{` + of + `,project_jobs_running="0"} 61.5`,
		`gitlab_runner_jobs_total{` + of + `} 1`,
		`gitlab_runner_jobs{` + of + `,state="running",stage="step_script",executor_stage="docker_run"} 0`,
		`gitlab_runner_failed_jobs_total{runner="` + r.shortToken() + `",runner_name="` + r.Name +
			`",failure_reason="runner_system_failure",mode="traditional"} 1`,
		`gitlab_runner_api_request_statuses_total{runner="` + r.shortToken() +
			`",system_id="r_0123456789ab",endpoint="request_job",status="204",method="post"} 1`,
		"gitlab_runner_concurrent 2",
	} {
		if !strings.Contains(answer.Body.String(), line+"\n") {
			t.Errorf("%s is not in\n%s", line, answer.Body)
		}
	}
}

func TestTraceIsMaskedAndResumedWhereGitLabLostIt(t *testing.T) {
	fake := &fakeGitLab{}
	server := httptest.NewServer(fake)
	defer server.Close()
	j := jobOf(t, `{"id": 7, "variables": [{"key": "P", "value": "hunter2", "masked": true}]}`)
	trace := newTrace(newGitLab(runner{URL: server.URL, Token: "glrt-x"}, "r_0"), j)
	ctx := context.Background()

	trace.printf("first")
	_, _ = trace.Write([]byte("password: hunt"))
	if _, _, err := trace.send(ctx); err != nil || string(fake.trace) != "first\n" {
		t.Fatalf("%v: %q", err, fake.trace)
	}
	_, _ = trace.Write([]byte("er2, token: glrt-x"))
	fake.trace = fake.trace[:3]
	trace.printf("")
	if _, _, err := trace.send(ctx); err != nil {
		t.Fatal(err)
	}
	if err := trace.finish(ctx, result{State: "success"}); err != nil {
		t.Fatal(err)
	}
	if want := "first\npassword: [MASKED], token: [MASKED]\n"; string(fake.trace) != want || fake.state != "success" {
		t.Errorf("%q, %s", fake.trace, fake.state)
	}
}

func TestACanceledJobIsGone(t *testing.T) {
	server := httptest.NewServer(&fakeGitLab{status: "canceled"})
	defer server.Close()
	j := jobOf(t, `{"id": 7}`)
	client := newGitLab(runner{URL: server.URL, Token: "glrt-x"}, "r_0")
	if _, _, err := client.appendTrace(context.Background(), j, 0, []byte("x")); err != errGone {
		t.Error(err)
	}
	if err := client.updateJob(context.Background(), j, result{State: "running"}); err != errGone {
		t.Error(err)
	}
}
