package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// The parts of config.toml that have an effect here; names and meanings as in
// https://docs.gitlab.com/runner/configuration/advanced-configuration/.
type config struct {
	Concurrent      int      `toml:"concurrent"`
	CheckInterval   int      `toml:"check_interval"` // seconds
	LogLevel        string   `toml:"log_level"`
	ListenAddress   string   `toml:"listen_address"`
	ShutdownTimeout int      `toml:"shutdown_timeout"` // seconds
	Runners         []runner `toml:"runners"`

	// Keys that this stand-in does not know or does not act upon.
	WithoutEffect []string `toml:"-"`
}

type runner struct {
	Name         string          `toml:"name"`
	URL          string          `toml:"url"`
	ID           int             `toml:"id"`
	Token        string          `toml:"token"`
	Executor     string          `toml:"executor"`
	Limit        int             `toml:"limit"`
	Environment  []string        `toml:"environment"`
	PreBuild     string          `toml:"pre_build_script"`
	PostBuild    string          `toml:"post_build_script"`
	FeatureFlags map[string]bool `toml:"feature_flags"`
	Docker       dockerConfig    `toml:"docker"`
}

type dockerConfig struct {
	Host                      string            `toml:"host"`
	Image                     string            `toml:"image"`
	PullPolicy                oneOrMany         `toml:"pull_policy"`
	User                      string            `toml:"user"`
	Privileged                bool              `toml:"privileged"`
	ServicesPrivileged        *bool             `toml:"services_privileged"`
	AllowedImages             []string          `toml:"allowed_images"`
	AllowedServices           []string          `toml:"allowed_services"`
	AllowedPullPolicies       []string          `toml:"allowed_pull_policies"`
	AllowedPrivilegedImages   []string          `toml:"allowed_privileged_images"`
	AllowedPrivilegedServices []string          `toml:"allowed_privileged_services"`
	Volumes                   []string          `toml:"volumes"`
	Services                  []service         `toml:"services"`
	ServicesLimit             *int              `toml:"services_limit"`
	NetworkMode               string            `toml:"network_mode"`
	NetworkMTU                int               `toml:"network_mtu"`
	EnableIPv6                bool              `toml:"enable_ipv6"`
	ExtraHosts                []string          `toml:"extra_hosts"`
	DNS                       []string          `toml:"dns"`
	CapAdd                    []string          `toml:"cap_add"`
	CapDrop                   []string          `toml:"cap_drop"`
	SecurityOpt               []string          `toml:"security_opt"`
	ServicesSecurityOpt       []string          `toml:"services_security_opt"`
	Memory                    string            `toml:"memory"`
	CPUs                      string            `toml:"cpus"`
	ServiceMemory             string            `toml:"service_memory"`
	ServiceCPUs               string            `toml:"service_cpus"`
	ShmSize                   int64             `toml:"shm_size"` // bytes
	Tmpfs                     map[string]string `toml:"tmpfs"`
	ServicesTmpfs             map[string]string `toml:"services_tmpfs"`
	ContainerLabels           map[string]string `toml:"container_labels"`
}

// A service, in config.toml as in a job.
type service struct {
	Name        string   `toml:"name" json:"name"`
	Alias       string   `toml:"alias" json:"alias"`
	Command     []string `toml:"command" json:"command"`
	Entrypoint  []string `toml:"entrypoint" json:"entrypoint"`
	Environment []string `toml:"environment" json:"-"`
	PullPolicy  []string `toml:"-" json:"pull_policy"`
}

// oneOrMany is a string or a list of strings.
type oneOrMany []string

func (o *oneOrMany) UnmarshalTOML(value any) error {
	switch value := value.(type) {
	case string:
		*o = oneOrMany{value}
		return nil
	case []any:
		for _, item := range value {
			text, ok := item.(string)
			if !ok {
				return fmt.Errorf("%v is not a string", item)
			}
			*o = append(*o, text)
		}
		return nil
	default:
		return fmt.Errorf("%v is neither a string nor a list of strings", value)
	}
}

const (
	defaultCheckInterval   = 3 * time.Second
	defaultShutdownTimeout = 30 * time.Second
	// How often the real runner looks for a changed config.toml.
	reloadInterval = 3 * time.Second
)

func (c *config) checkInterval() time.Duration {
	if c.CheckInterval > 0 {
		return time.Duration(c.CheckInterval) * time.Second
	}
	return defaultCheckInterval
}

func (c *config) shutdownTimeout() time.Duration {
	if c.ShutdownTimeout > 0 {
		return time.Duration(c.ShutdownTimeout) * time.Second
	}
	return defaultShutdownTimeout
}

func loadConfig(path string) (*config, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseConfig(content)
}

func parseConfig(content []byte) (*config, error) {
	parsed := &config{Concurrent: 1}
	meta, err := toml.NewDecoder(bytes.NewReader(content)).Decode(parsed)
	if err != nil {
		return nil, err
	}
	for _, key := range meta.Undecoded() {
		parsed.WithoutEffect = append(parsed.WithoutEffect, key.String())
	}
	if parsed.Concurrent < 1 {
		return nil, fmt.Errorf("concurrent is %d, so no job would ever run", parsed.Concurrent)
	}
	for i, r := range parsed.Runners {
		switch {
		case r.URL == "" || r.Token == "":
			return nil, fmt.Errorf("runner %d (%q) has no url or no token", i+1, r.Name)
		case r.Executor != "docker":
			return nil, fmt.Errorf("runner %d (%q) has executor %q; this stand-in knows only docker", i+1, r.Name, r.Executor)
		case r.Docker.Image == "":
			return nil, fmt.Errorf("runner %d (%q) has no docker.image", i+1, r.Name)
		}
	}
	return parsed, nil
}

var tokenPartition = regexp.MustCompile(`^t\d_`)

// shortToken is the part of the token that is shown, in logs and container names, as the real runner does.
func (r runner) shortToken() string {
	token := tokenPartition.ReplaceAllString(strings.TrimPrefix(r.Token, "glrt-"), "")
	return token[:min(len(token), 9)]
}

// key tells runners apart, also across a change of config.toml.
func (r runner) key() string {
	return r.URL + " " + r.Token
}

var validSystemID = regexp.MustCompile(`^[sr]_[0-9a-zA-Z]{12}$`)

// systemID is what tells this manager from others that share its tokens. It is kept beside the configuration; when
// that fails, the ID that is returned with the error holds for this process only.
func systemID(configPath string) (string, error) {
	path := filepath.Join(filepath.Dir(configPath), ".runner_system_id")
	kept, err := os.ReadFile(path)
	if err == nil && validSystemID.Match(bytes.TrimSpace(kept)) {
		return string(bytes.TrimSpace(kept)), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return newSystemID(), err
	}
	id := newSystemID()
	return id, os.WriteFile(path, []byte(id), 0o600)
}

func newSystemID() string {
	const characters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	random := make([]byte, 12)
	rand.Read(random) // never fails on Linux: crypto/rand's documentation
	for i, b := range random {
		random[i] = characters[int(b)%len(characters)]
	}
	return "r_" + string(random)
}
