package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// Until GitLab names another.
	firstTraceInterval = time.Second
	// A job that is silent this long is reported as running, to hear whether it has been canceled.
	keepAliveInterval = 30 * time.Second
	// How often, and how far apart, the end of a job is told to a GitLab that does not answer.
	finalAttempts = 10
	finalPause    = 3 * time.Second
)

// trace is a job's log: written by the job, sent to GitLab piece by piece.
type trace struct {
	gitlab *gitlab
	job    *job
	secret [][]byte

	mutex   sync.Mutex
	whole   []byte
	partial []byte // an unfinished line: held back, since a secret might be half written
	sent    int
}

func newTrace(g *gitlab, j *job) *trace {
	t := &trace{gitlab: g, job: j, secret: [][]byte{[]byte(g.token)}}
	for _, variable := range j.Variables {
		if variable.Masked && variable.Value != "" {
			t.secret = append(t.secret, []byte(variable.Value))
		}
	}
	return t
}

// Write adds output of the job. It never fails.
func (t *trace) Write(output []byte) (int, error) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.partial = append(t.partial, output...)
	t.take(bytes.LastIndexByte(t.partial, '\n') + 1)
	return len(output), nil
}

func (t *trace) printf(format string, values ...any) {
	fmt.Fprintf(t, format+"\n", values...)
}

// take moves so many bytes of the unfinished line into the trace, without the secrets in them.
func (t *trace) take(length int) {
	text := t.partial[:length]
	for _, secret := range t.secret {
		text = bytes.ReplaceAll(text, secret, []byte("[MASKED]"))
	}
	t.whole = append(t.whole, text...)
	t.partial = append([]byte(nil), t.partial[length:]...)
}

// follow sends the trace until ctx ends; it calls gone when GitLab has ended the job.
func (t *trace) follow(ctx context.Context, gone func(error)) {
	interval, lastSent := firstTraceInterval, time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(interval):
		}
		sent, next, err := t.send(ctx)
		if err == nil && !sent && time.Since(lastSent) > keepAliveInterval {
			sent, err = true, t.gitlab.updateJob(ctx, t.job, result{State: "running"})
		}
		// Any other error passes or not: the next round tries again, and finish reports.
		if errors.Is(err, errGone) {
			gone(err)
			return
		}
		if sent {
			lastSent = time.Now()
		}
		if next > 0 {
			interval = next
		}
	}
}

// send sends what has not been sent yet.
func (t *trace) send(ctx context.Context) (sent bool, next time.Duration, err error) {
	t.mutex.Lock()
	offset, piece := t.sent, t.whole[t.sent:]
	t.mutex.Unlock()
	if len(piece) == 0 {
		return false, 0, nil
	}
	known, next, err := t.gitlab.appendTrace(ctx, t.job, offset, piece)
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.sent = min(known, len(t.whole))
	return true, next, err
}

// finish sends the rest and the result, again and again if need be.
func (t *trace) finish(ctx context.Context, r result) error {
	t.mutex.Lock()
	t.take(len(t.partial))
	t.mutex.Unlock()
	var err error
	for attempt := 0; attempt < finalAttempts; attempt++ {
		if attempt > 0 {
			time.Sleep(finalPause)
		}
		if _, _, err = t.send(ctx); err == nil && t.sent == len(t.whole) {
			err = t.gitlab.updateJob(ctx, t.job, r)
		} else if err == nil {
			err = errors.New("GitLab does not have the whole trace")
		}
		if err == nil || errors.Is(err, errGone) {
			return err
		}
	}
	return err
}
