package main

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"reflect"
	"strings"
	"testing"
)

func jobOf(t *testing.T, payload string) *job {
	t.Helper()
	parsed := new(job)
	if err := json.Unmarshal([]byte(payload), parsed); err != nil {
		t.Fatal(err)
	}
	return parsed
}

func TestScriptShowsAndRunsEveryLineUntilOneFails(t *testing.T) {
	payload := `{"steps": [{"script": ["echo its $((1+1))", "cat", "for i in 1 2; do\n echo n$i\ndone", "(exit 3)", "echo never"]}]}`
	e := &execution{job: jobOf(t, payload), runner: runner{PreBuild: "echo before"}}
	shell := exec.Command("sh")
	shell.Stdin = strings.NewReader(e.script())
	output, err := shell.CombinedOutput()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 3 {
		t.Fatalf("%v: %s", err, output)
	}
	for _, wanted := range []string{"$ echo before", "\nbefore\n", "\nits 2\n", "$ cat", "# collapsed multi-line command", "\nn1\nn2\n"} {
		if !bytes.Contains(output, []byte(wanted)) {
			t.Errorf("%q is missing in %s", wanted, output)
		}
	}
	if bytes.Contains(output, []byte("never")) {
		t.Errorf("went on after a failure: %s", output)
	}
}

func TestQuotesInAScriptAreKept(t *testing.T) {
	e := &execution{job: jobOf(t, `{"steps": [{"script": ["echo 'a  b' \"c'd\""]}]}`)}
	shell := exec.Command("sh")
	shell.Stdin = strings.NewReader(e.script())
	output, err := shell.CombinedOutput()
	if err != nil || !bytes.HasSuffix(output, []byte("\na  b c'd\n")) {
		t.Errorf("%v: %s", err, output)
	}
}

func TestServicesHaveTheNamesOfTheRealRunner(t *testing.T) {
	for _, test := range []struct {
		service service
		names   []string
	}{
		{service{Name: "docker:dind"}, []string{"docker"}},
		{service{Name: "postgres", Alias: "db, sql"}, []string{"postgres", "db", "sql"}},
		{service{Name: "registry.example:5000/team/app:1@sha256:00"}, []string{"registry.example5000__team__app", "registry.example5000-team-app"}},
	} {
		if got := aliases(test.service); !reflect.DeepEqual(got, test.names) {
			t.Errorf("%s: %v", test.service.Name, got)
		}
	}
}

func TestAllowedPatterns(t *testing.T) {
	for _, test := range []struct {
		name     string
		patterns []string
		allowed  bool
	}{
		{"anything", nil, true},
		{"docker:27-dind", []string{"docker:*-dind"}, true},
		{"evil/docker:27-dind", []string{"docker:*-dind"}, false},
		{"registry.example/a/b:1", []string{"registry.example/*"}, false},
		{"registry.example/a/b:1", []string{"registry.example/**"}, true},
		// An image that the job does not name is not on any list.
		{"", []string{"docker:*"}, false},
	} {
		if got := allowed(test.name, test.patterns); got != test.allowed {
			t.Errorf("%q in %v: %t", test.name, test.patterns, got)
		}
	}
}

func TestSizesAreReadAsDockerWritesThem(t *testing.T) {
	for size, wanted := range map[string]int64{"": 0, "1024": 1024, "512m": 512 << 20, "2GB": 2 << 30, "x": 0} {
		if got := bytesOf(size); got != wanted {
			t.Errorf("%s: %d", size, got)
		}
	}
}

func TestPullPoliciesOfAJobAreThoseThatAreAllowed(t *testing.T) {
	for _, test := range []struct {
		configured, permitted, wanted, result []string
	}{
		{nil, nil, nil, []string{"always"}},
		{[]string{"if-not-present"}, nil, nil, []string{"if-not-present"}},
		{nil, nil, []string{"never"}, nil},
		{[]string{"always"}, []string{"always", "never"}, []string{"if-not-present", "never"}, []string{"never"}},
		{nil, []string{"never"}, nil, nil},
	} {
		settings := dockerConfig{PullPolicy: test.configured, AllowedPullPolicies: test.permitted}
		got, err := settings.pullPolicies(test.wanted)
		if !reflect.DeepEqual(got, test.result) || (err == nil) != (test.result != nil) {
			t.Errorf("%+v: %v %v", test, got, err)
		}
	}
}

func TestServicesAreThoseThatAreAllowedAndNotTooMany(t *testing.T) {
	none, one := 0, 1
	wanted := jobOf(t, `{"services": [{"name": "postgres:17"}, {"name": "redis:8"}]}`)
	for _, test := range []struct {
		settings dockerConfig
		message  string
	}{
		{dockerConfig{}, ""},
		{dockerConfig{AllowedServices: []string{"postgres:*", "redis:*"}}, ""},
		{dockerConfig{AllowedServices: []string{"postgres:*"}, Services: []service{{Name: "redis:8"}}}, ""},
		{dockerConfig{AllowedServices: []string{"postgres:*"}}, `the "redis:8" service is not present on list of allowed services: postgres:*`},
		{dockerConfig{ServicesLimit: &one}, "too many services requested: 2, only 1 allowed"},
		{dockerConfig{ServicesLimit: &none}, "too many services requested: 2, only 0 allowed"},
	} {
		_, err := (&execution{job: wanted, runner: runner{Docker: test.settings}}).services()
		if (err == nil) != (test.message == "") || err != nil && !strings.Contains(err.Error(), test.message) {
			t.Errorf("%+v: %v", test.settings, err)
		}
	}
}

func TestJobsAndServicesAreConfinedAsTheConfigurationSays(t *testing.T) {
	parsed, err := parseConfig([]byte(minimal + `
    security_opt = ["no-new-privileges:true"]
    cap_add = ["SYS_PTRACE"]
    cap_drop = ["NET_RAW"]
    memory = "2g"
    cpus = "1.5"
    service_memory = "512m"
    service_cpus = "0.5"
`))
	if err != nil || len(parsed.WithoutEffect) > 0 {
		t.Fatal(err, parsed)
	}
	e := &execution{job: jobOf(t, "{}"), runner: parsed.Runners[0]}
	for kind, wanted := range map[string]map[string]any{
		"build": {
			"SecurityOpt": []string{"no-new-privileges:true"}, "CapAdd": []string{"SYS_PTRACE"}, "CapDrop": []string{"NET_RAW"},
			"Memory": int64(2 << 30), "NanoCpus": int64(1.5e9),
		},
		"service": {
			"SecurityOpt": []string(nil), "CapAdd": nil, "CapDrop": nil, "Memory": int64(512 << 20), "NanoCpus": int64(0.5e9),
		},
	} {
		host := e.container("image", kind, false, nil)["HostConfig"].(map[string]any)
		for key, value := range wanted {
			if !reflect.DeepEqual(host[key], value) {
				t.Errorf("%s: %s is %v", kind, key, host[key])
			}
		}
	}
}
