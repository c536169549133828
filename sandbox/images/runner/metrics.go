package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// metrics counts what the real runner counts, and shows it as the real one does: names, labels and buckets are those of
// its commands/builds_helper.go, network/api_requests_collector.go and helpers/prometheus. It has only those that an
// alert or a dashboard may need.
type metrics struct {
	mutex  sync.Mutex
	values map[string]map[string]float64 // by name, and by labels as they are written
	queue  map[string][]float64          // seconds that jobs waited, by labels
}

const defaultMetricsPort = "9252"

var (
	help = map[string][2]string{
		"gitlab_runner_api_request_statuses_total": {"counter", "The total number of API requests made by GitLab Runner, " +
			"partitioned by runner, system_id, endpoint, status and method."},
		"gitlab_runner_concurrent":        {"gauge", "The current value of concurrent setting"},
		"gitlab_runner_failed_jobs_total": {"counter", "Total number of failed jobs"},
		"gitlab_runner_jobs":              {"gauge", "The current number of running builds."},
		"gitlab_runner_jobs_total":        {"counter", "Total number of handled jobs"},
		"gitlab_runner_limit":             {"gauge", "The current value of concurrent setting"},
		"gitlab_runner_version_info": {"gauge", "A metric with a constant '1' value labeled by different build stats " +
			"fields."},
	}
	queueBuckets = []float64{1, 3, 10, 30, 60, 120, 300, 900, 1800, 3600}
)

const queueName = "gitlab_runner_job_queue_duration_seconds"

func newMetrics() *metrics {
	return &metrics{values: map[string]map[string]float64{}, queue: map[string][]float64{}}
}

// labels writes pairs of name and value.
func labels(pairs ...string) string {
	escaped := strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
	var written []string
	for i := 0; i < len(pairs); i += 2 {
		written = append(written, fmt.Sprintf(`%s="%s"`, pairs[i], escaped.Replace(pairs[i+1])))
	}
	return strings.Join(written, ",")
}

func (r runner) labels(systemID string, more ...string) string {
	return labels(append([]string{"runner", r.shortToken(), "runner_name", r.Name, "system_id", systemID}, more...)...)
}

func (m *metrics) add(name, labels string, change float64) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if m.values[name] == nil {
		m.values[name] = map[string]float64{}
	}
	m.values[name][labels] += change
}

// replace forgets a metric and sets it anew.
func (m *metrics) replace(name string, values map[string]float64) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.values[name] = values
}

func (m *metrics) waited(labels string, seconds float64) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.queue[labels] = append(m.queue[labels], seconds)
}

// write writes all in Prometheus' text format.
func (m *metrics) write(out io.Writer) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	for _, name := range sorted(m.values) {
		fmt.Fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help[name][1], name, help[name][0])
		for _, labels := range sorted(m.values[name]) {
			braced := "{" + labels + "}"
			if labels == "" {
				braced = ""
			}
			fmt.Fprintf(out, "%s%s %s\n", name, braced, number(m.values[name][labels]))
		}
	}
	if len(m.queue) > 0 {
		fmt.Fprintf(out, "# HELP %s A histogram representing job queue duration.\n# TYPE %s histogram\n", queueName, queueName)
	}
	for _, labels := range sorted(m.queue) {
		sum := 0.0
		for _, seconds := range m.queue[labels] {
			sum += seconds
		}
		for _, bucket := range queueBuckets {
			count := 0
			for _, seconds := range m.queue[labels] {
				if seconds <= bucket {
					count++
				}
			}
			fmt.Fprintf(out, "%s_bucket{%s,le=\"%s\"} %d\n", queueName, labels, number(bucket), count)
		}
		count := len(m.queue[labels])
		fmt.Fprintf(out, "%s_bucket{%s,le=\"+Inf\"} %d\n", queueName, labels, count)
		fmt.Fprintf(out, "%s_sum{%s} %s\n%s_count{%s} %d\n", queueName, labels, number(sum), queueName, labels, count)
	}
}

func sorted[V any](values map[string]V) []string {
	var keys []string
	for key := range values {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

func number(value float64) string {
	return strconv.FormatFloat(value, 'g', -1, 64)
}

// ServeHTTP answers /metrics.
func (m *metrics) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/metrics" {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8; escaping=underscores")
	m.write(w)
}

// listen serves metrics at `listen_address`, from now on; the real runner too reads it only when it starts.
func (m *metrics) listen(address string) error {
	if _, port, err := net.SplitHostPort(address); err != nil || port == "" {
		address = net.JoinHostPort(strings.TrimSuffix(address, ":"), defaultMetricsPort)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	go func() { _ = http.Serve(listener, m) }()
	return nil
}
