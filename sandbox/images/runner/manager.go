package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

// manager reads the configuration, asks GitLab for jobs in the name of every runner in it, and runs them.
type manager struct {
	path     string
	log      *slog.Logger
	level    *slog.LevelVar
	systemID string
	metrics  *metrics

	config  *config
	content []byte               // the config.toml that was read last, good or bad
	due     map[string]time.Time // when each runner asks again

	mutex sync.Mutex
	slots map[string]map[int]bool // the jobs that each runner has
	jobs  sync.WaitGroup
}

func newManager(path string, log *slog.Logger, level *slog.LevelVar) *manager {
	return &manager{
		path: path, log: log, level: level, metrics: newMetrics(), config: &config{Concurrent: 1},
		due: map[string]time.Time{}, slots: map[string]map[int]bool{},
	}
}

// work runs until quit ends and all jobs have ended; abort ends to abort the jobs. It returns the exit status.
func (m *manager) work(quit, abort context.Context) int {
	id, err := systemID(m.path)
	if err != nil {
		m.log.Warn("The system ID cannot be kept", "error", err)
	}
	m.systemID = id
	m.log.Info("Configuration", "file", m.path, "system_id", id)
	m.reload(quit)
	if address := m.config.ListenAddress; address != "" {
		if err := m.metrics.listen(address); err != nil {
			m.log.Error("Failed to create listener for metrics server", "error", err)
			return 1
		}
	}
	reload := time.Now().Add(reloadInterval)
	for quit.Err() == nil {
		if !time.Now().Before(reload) {
			m.reload(quit)
			reload = time.Now().Add(reloadInterval)
		}
		next := m.ask(quit, abort)
		if reload.Before(next) {
			next = reload
		}
		select {
		case <-quit.Done():
		case <-time.After(time.Until(next)):
		}
	}
	return m.end(abort)
}

// end waits for the jobs: as long as they take, or, once they are aborted, for the shutdown timeout.
func (m *manager) end(abort context.Context) int {
	finished := make(chan struct{})
	go func() { m.jobs.Wait(); close(finished) }()
	m.log.Info("No new jobs are taken", "running", m.running())
	select {
	case <-finished:
	case <-abort.Done():
		select {
		case <-finished:
		case <-time.After(m.config.shutdownTimeout()):
			m.log.Error("Jobs did not end in time", "running", m.running())
			return 1
		}
	}
	m.log.Info("All jobs have ended; exiting")
	return 0
}

// reload takes a changed configuration, and keeps the one there is when the new one is missing or broken.
func (m *manager) reload(ctx context.Context) {
	content, err := os.ReadFile(m.path)
	if err != nil {
		m.log.Error("Failed to load config", "error", err)
		return
	}
	if m.content != nil && bytes.Equal(content, m.content) {
		return
	}
	m.content = content
	loaded, err := parseConfig(content)
	if err != nil {
		m.log.Error("Failed to load config; the last good one stays in force", "error", err)
		return
	}
	known := map[string]bool{}
	for _, r := range m.config.Runners {
		known[r.key()] = true
	}
	m.config = loaded
	m.setLevel(loaded.LogLevel)
	m.log.Info("Configuration loaded", "runners", len(loaded.Runners), "concurrent", loaded.Concurrent,
		"check_interval", loaded.checkInterval())
	if len(loaded.WithoutEffect) > 0 {
		m.log.Info("Settings without effect in this stand-in", "keys", strings.Join(loaded.WithoutEffect, " "))
	}
	m.countSettings()
	for _, r := range loaded.Runners {
		if known[r.key()] {
			continue
		}
		if err := m.gitlab(r).verify(ctx); err != nil {
			m.log.Error("Verifying runner... failed", "runner", r.shortToken(), "name", r.Name, "error", err)
		} else {
			m.log.Info("Verifying runner... is valid", "runner", r.shortToken(), "name", r.Name)
		}
	}
}

// gitlab is a client whose requests are counted.
func (m *manager) gitlab(r runner) *gitlab {
	client := newGitLab(r, m.systemID)
	client.counted = func(endpoint, method string, status int) {
		m.metrics.add("gitlab_runner_api_request_statuses_total", labels(
			"runner", r.shortToken(), "system_id", m.systemID,
			"endpoint", endpoint, "status", strconv.Itoa(status), "method", method), 1)
	}
	return client
}

func (m *manager) countSettings() {
	limits := map[string]float64{}
	for _, r := range m.config.Runners {
		limits[r.labels(m.systemID)] = float64(r.Limit)
		m.metrics.add("gitlab_runner_jobs", r.labels(m.systemID, "state", "idle", "stage", "idle", "executor_stage", "idle"), 0)
	}
	m.metrics.replace("gitlab_runner_limit", limits)
	m.metrics.replace("gitlab_runner_concurrent", map[string]float64{"": float64(m.config.Concurrent)})
	m.metrics.replace("gitlab_runner_version_info", map[string]float64{
		labels("architecture", runtime.GOARCH, "branch", "stand-in", "built_at", "", "go_version", runtime.Version(),
			"name", "gitlab-runner", "os", runtime.GOOS, "revision", "", "version", version): 1,
	})
}

func (m *manager) setLevel(name string) {
	levels := map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "": slog.LevelInfo, "warn": slog.LevelWarn,
		"warning": slog.LevelWarn, "error": slog.LevelError, "fatal": slog.LevelError, "panic": slog.LevelError,
	}
	level, known := levels[strings.ToLower(name)]
	if !known {
		m.log.Error("Unknown log_level", "log_level", name)
		return
	}
	m.level.Set(level)
}

// ask lets every runner that is due and has room ask for a job. It returns when the next one is due.
func (m *manager) ask(quit, abort context.Context) time.Time {
	next := time.Now().Add(reloadInterval)
	for _, r := range m.config.Runners {
		for quit.Err() == nil && !time.Now().Before(m.due[r.key()]) {
			m.due[r.key()] = time.Now().Add(m.config.checkInterval())
			if m.askFor(abort, r) {
				// Whoever got a job asks at once for another, as the real runner does.
				m.due[r.key()] = time.Now()
			}
		}
		if m.due[r.key()].Before(next) {
			next = m.due[r.key()]
		}
	}
	return next
}

// askFor asks for one job and starts it; false when there is no room or no job.
func (m *manager) askFor(abort context.Context, r runner) bool {
	slot, ok := m.take(r)
	if !ok {
		return false
	}
	client := m.gitlab(r)
	// Not ended by quit: the job that GitLab may just be giving out would be lost.
	received, err := client.requestJob(abort)
	if err != nil || received == nil {
		m.release(r, slot)
		if err != nil && !errors.Is(err, context.Canceled) {
			m.log.Error("Checking for jobs... failed", "runner", r.shortToken(), "error", err)
		}
		return false
	}
	m.log.Info("Checking for jobs... received", "runner", r.shortToken(), "job", received.ID)
	m.jobs.Add(1)
	go func() {
		defer m.jobs.Done()
		defer m.release(r, slot)
		m.runJob(abort, client, r, received, slot)
	}()
	return true
}

// runJob runs a job and tells GitLab how it ended.
func (m *manager) runJob(abort context.Context, client *gitlab, r runner, received *job, slot int) {
	log := m.log.With("runner", r.shortToken(), "job", received.ID)
	ctx, stop := context.WithCancelCause(abort)
	defer stop(nil)
	running := r.labels(m.systemID, "state", "running", "stage", "step_script", "executor_stage", "docker_run")
	m.metrics.add("gitlab_runner_jobs", running, 1)
	defer m.metrics.add("gitlab_runner_jobs", running, -1)
	m.metrics.add("gitlab_runner_jobs_total", r.labels(m.systemID), 1)
	m.metrics.waited(r.labels(m.systemID, "project_jobs_running", received.JobInfo.ProjectJobsRunningText),
		received.JobInfo.TimeInQueueSeconds)
	trace := newTrace(client, received)
	following, stopFollowing := context.WithCancel(context.WithoutCancel(ctx))
	followed := make(chan struct{})
	go func() { trace.follow(following, stop); close(followed) }()

	outcome := result{State: "failed", FailureReason: "runner_system_failure", ExitCode: 1}
	engine, err := newDocker(r.Docker.Host)
	if err != nil {
		trace.printf("ERROR: Job failed (system failure): %s", err)
	} else {
		execution := &execution{job: received, runner: r, systemID: m.systemID, slot: slot, docker: engine, trace: trace}
		outcome = execution.run(ctx)
	}
	stopFollowing()
	<-followed
	if err := trace.finish(context.WithoutCancel(ctx), outcome); err != nil {
		log.Error("The end of the job could not be told to GitLab", "state", outcome.State, "error", err)
		return
	}
	if outcome.State == "failed" {
		m.metrics.add("gitlab_runner_failed_jobs_total", labels("runner", r.shortToken(), "runner_name", r.Name,
			"failure_reason", outcome.FailureReason, "mode", "traditional"), 1)
	}
	log.Info("Job ended", "state", outcome.State, "reason", outcome.FailureReason)
}

// take reserves room for one more job of a runner: the lowest free number. False when its limit, or that of all
// runners together, is reached.
func (m *manager) take(r runner) (int, bool) {
	running := m.running()
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if m.slots[r.key()] == nil {
		m.slots[r.key()] = map[int]bool{}
	}
	taken := m.slots[r.key()]
	if running >= m.config.Concurrent || (r.Limit > 0 && len(taken) >= r.Limit) {
		return 0, false
	}
	slot := 0
	for taken[slot] {
		slot++
	}
	taken[slot] = true
	return slot, true
}

func (m *manager) release(r runner, slot int) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	delete(m.slots[r.key()], slot)
}

func (m *manager) running() int {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	running := 0
	for _, taken := range m.slots {
		running += len(taken)
	}
	return running
}
