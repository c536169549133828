package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const minimal = `
concurrent = 2
[[runners]]
  name = "docker on vm-1"
  url = "http://gitlab.example"
  token = "glrt-t2_abcdefghijklmnop"
  executor = "docker"
  [runners.docker]
    image = "busybox"
`

func TestConfigIsRead(t *testing.T) {
	parsed, err := parseConfig([]byte(minimal + `
    pull_policy = ["always", "if-not-present"]
    services_privileged = true
    network_mtu = 1450
    tls_verify = false
    [[runners.docker.services]]
      name = "docker:dind"
      alias = "docker"
  [runners.feature_flags]
    FF_NETWORK_PER_BUILD = true
`))
	if err != nil {
		t.Fatal(err)
	}
	r := parsed.Runners[0]
	if parsed.Concurrent != 2 || parsed.checkInterval() != defaultCheckInterval || r.shortToken() != "abcdefghi" {
		t.Errorf("got %+v", parsed)
	}
	if r.Docker.NetworkMTU != 1450 || !*r.Docker.ServicesPrivileged || r.Docker.Privileged ||
		!r.FeatureFlags["FF_NETWORK_PER_BUILD"] || r.Docker.Services[0].Alias != "docker" {
		t.Errorf("got %+v", r.Docker)
	}
	if len(r.Docker.PullPolicy) != 2 || len(parsed.WithoutEffect) != 1 || parsed.WithoutEffect[0] != "runners.docker.tls_verify" {
		t.Errorf("got %v, without effect %v", r.Docker.PullPolicy, parsed.WithoutEffect)
	}
}

func TestPullPolicyMayBeOneWord(t *testing.T) {
	parsed, err := parseConfig([]byte(minimal + "    pull_policy = \"never\"\n"))
	if err != nil || len(parsed.Runners[0].Docker.PullPolicy) != 1 {
		t.Fatal(parsed, err)
	}
}

func TestBrokenConfigIsRefused(t *testing.T) {
	for name, content := range map[string]string{
		"syntax":   minimal + "[",
		"type":     strings.Replace(minimal, "concurrent = 2", `concurrent = "two"`, 1),
		"no job":   strings.Replace(minimal, "concurrent = 2", "concurrent = 0", 1),
		"executor": strings.Replace(minimal, `"docker"`, `"shell"`, 1),
		"no token": strings.Replace(minimal, `token = "glrt-t2_abcdefghijklmnop"`, "", 1),
		"no image": strings.Replace(minimal, `image = "busybox"`, "", 1),
	} {
		if _, err := parseConfig([]byte(content)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestSystemIDIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.toml")
	first, err := systemID(path)
	if err != nil || !validSystemID.MatchString(first) {
		t.Fatal(first, err)
	}
	if second, err := systemID(path); err != nil || second != first {
		t.Errorf("got %s and %s (%v)", first, second, err)
	}
	file := filepath.Join(filepath.Dir(path), ".runner_system_id")
	if err := os.WriteFile(file, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if third, err := systemID(path); err != nil || !validSystemID.MatchString(third) {
		t.Errorf("got %s (%v)", third, err)
	}
}
