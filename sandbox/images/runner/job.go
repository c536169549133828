package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	green = "\033[32;1m"
	red   = "\033[31;1m"
	cyan  = "\033[36;1m"
	plain = "\033[0;m"

	labelPrefix    = "com.gitlab.gitlab-runner."
	mtuOption      = "com.docker.network.driver.mtu"
	cleanupTimeout = time.Minute
)

// execution is one job on one runner.
type execution struct {
	job      *job
	runner   runner
	systemID string
	slot     int // which of the runner's concurrent jobs this is
	docker   *docker
	trace    *trace

	// What is to be removed at the end, in the order of creation.
	containers, networks, volumes []string
}

// failure is an error of a job with the reason that GitLab is told.
type failure struct {
	reason string
	cause  error
}

func (f *failure) Error() string { return f.cause.Error() }

// run does the job: prepares, runs the script, cleans up in any case, and writes the trace. ctx ends to abort it.
func (e *execution) run(ctx context.Context) result {
	timeout := e.job.timeout()
	tooLong := fmt.Errorf("execution took longer than %s", timeout)
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, tooLong)
	defer cancel()

	e.trace.printf("Running with the sandbox's stand-in for GitLab Runner %s", version)
	e.trace.printf("  on %s %s, system ID: %s", e.runner.Name, e.runner.shortToken(), e.systemID)
	code, err := e.execute(ctx)
	e.cleanUp(context.WithoutCancel(ctx))

	if cause := context.Cause(ctx); cause != nil {
		reason := "runner_system_failure"
		if errors.Is(cause, tooLong) {
			reason = "job_execution_timeout"
		}
		err = &failure{reason, cause}
	}
	var failed *failure
	switch {
	case errors.As(err, &failed):
		e.trace.printf("%sERROR: Job failed (%s): %s%s", red, strings.ReplaceAll(failed.reason, "_", " "), err, plain)
		return result{State: "failed", FailureReason: failed.reason, ExitCode: 1}
	case err != nil:
		e.trace.printf("%sERROR: Job failed (system failure): %s%s", red, err, plain)
		return result{State: "failed", FailureReason: "runner_system_failure", ExitCode: 1}
	case code != 0:
		e.trace.printf("%sERROR: Job failed: exit code %d%s", red, code, plain)
		return result{State: "failed", FailureReason: "script_failure", ExitCode: code}
	default:
		e.trace.printf("%sJob succeeded%s", green, plain)
		return result{State: "success"}
	}
}

// execute gives the exit code of the job's script.
func (e *execution) execute(ctx context.Context) (int, error) {
	settings := e.runner.Docker
	image := e.job.Image.Name
	privileged := settings.Privileged && allowed(image, settings.AllowedPrivilegedImages)
	if image == "" {
		image = settings.Image
	} else if image != settings.Image && !allowed(image, settings.AllowedImages) {
		return 0, notAllowed("image", image, settings.AllowedImages)
	}
	e.trace.printf("%sUsing Docker executor with image %s ...%s", cyan, image, plain)
	if err := e.createNetwork(ctx); err != nil {
		return 0, err
	}
	mounts, err := e.createVolumes(ctx)
	if err != nil {
		return 0, err
	}
	if err := e.startServices(ctx, mounts); err != nil {
		return 0, err
	}
	if err := e.provide(ctx, image, e.job.Image.PullPolicy); err != nil {
		return 0, err
	}

	name := e.name("build")
	specification := e.container(image, "build", privileged, mounts)
	specification["Cmd"] = []string{"sh", "-c", detectShell}
	specification["OpenStdin"], specification["StdinOnce"] = true, true
	specification["AttachStdin"], specification["AttachStdout"], specification["AttachStderr"] = true, true, true
	if len(e.job.Image.Entrypoint) > 0 {
		specification["Entrypoint"] = e.job.Image.Entrypoint
	}
	if err := e.create(ctx, name, specification); err != nil {
		return 0, err
	}
	e.trace.printf("%sRunning on %s ...%s", cyan, name, plain)
	e.trace.printf("Skipping Git repository setup: the sandbox has no repositories (GIT_STRATEGY=none)")
	e.trace.printf("%sExecuting the job script%s", cyan, plain)
	return e.feed(ctx, name)
}

// The real runner does the same, for more shells: the script comes through standard input, so that it shows neither in
// the container's command line nor in its environment.
const detectShell = "if command -v bash >/dev/null; then exec bash; else exec sh; fi"

// feed starts the container, gives it the script and copies its output to the trace.
func (e *execution) feed(ctx context.Context, name string) (int, error) {
	input, output, err := e.docker.attach(ctx, name)
	if err != nil {
		return 0, err
	}
	defer input.Close()
	// An attached stream knows no context; the container's end, which cleaning up brings, ends it.
	stop := context.AfterFunc(ctx, func() { input.Close() })
	defer stop()
	if err := e.docker.startContainer(ctx, name); err != nil {
		return 0, err
	}
	if _, err := input.Write([]byte(e.script())); err != nil {
		return 0, err
	}
	if err := input.CloseWrite(); err != nil {
		return 0, err
	}
	if err := demultiplex(e.trace, output); err != nil {
		return 0, err
	}
	return e.docker.wait(ctx, name)
}

// script is what the shell runs: every line of the job after it has been shown, until one fails.
func (e *execution) script() string {
	lines := []string{
		"set -o errexit",
		"if set -o | grep -q pipefail; then set -o pipefail; fi",
	}
	if directory := e.job.variable("CI_PROJECT_DIR"); directory != "" {
		lines = append(lines, "mkdir -p "+quote(directory), "cd "+quote(directory))
	}
	commands := []string{}
	for _, step := range e.job.Steps {
		commands = append(commands, step.Script...)
	}
	if e.runner.PreBuild != "" {
		commands = append([]string{e.runner.PreBuild}, commands...)
	}
	if e.runner.PostBuild != "" {
		commands = append(commands, e.runner.PostBuild)
	}
	for _, command := range commands {
		shown, _, more := strings.Cut(strings.TrimSpace(command), "\n")
		if more {
			shown += " # collapsed multi-line command"
		}
		lines = append(lines, "printf '%s\\n' "+quote(green+"$ "+shown+plain), command)
	}
	// In a pipe: a command of the job that reads standard input must not eat the rest of the script.
	return ": | eval " + quote(strings.Join(lines, "\n")) + "\n"
}

func quote(text string) string {
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

func (e *execution) startServices(ctx context.Context, mounts []map[string]any) error {
	settings := e.runner.Docker
	services, err := e.services()
	if err != nil {
		return err
	}
	for i, service := range services {
		e.trace.printf("%sStarting service %s ...%s", cyan, service.Name, plain)
		if err := e.provide(ctx, service.Name, service.PullPolicy); err != nil {
			return err
		}
		privileged := settings.Privileged
		if settings.ServicesPrivileged != nil {
			privileged = *settings.ServicesPrivileged
		}
		privileged = privileged && allowed(service.Name, settings.AllowedPrivilegedServices)
		specification := e.container(service.Name, "service", privileged, mounts)
		specification["Env"] = append(specification["Env"].([]string), service.Environment...)
		if len(service.Command) > 0 {
			specification["Cmd"] = service.Command
		}
		if len(service.Entrypoint) > 0 {
			specification["Entrypoint"] = service.Entrypoint
		}
		e.join(specification, aliases(service))
		name := e.name(fmt.Sprintf("service-%d", i))
		if err := e.create(ctx, name, specification); err != nil {
			return err
		}
		if err := e.docker.startContainer(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// services are those of the configuration and those that the job asks for, as far as the configuration allows them.
func (e *execution) services() ([]service, error) {
	settings := e.runner.Docker
	for _, wanted := range e.job.Services {
		if !allowed(wanted.Name, settings.AllowedServices) && !hasService(settings.Services, wanted.Name) {
			return nil, notAllowed("service", wanted.Name, settings.AllowedServices)
		}
	}
	services := append(append([]service(nil), settings.Services...), e.job.Services...)
	if limit := settings.ServicesLimit; limit != nil && *limit >= 0 && len(services) > *limit {
		return nil, &failure{
			"runner_system_failure", fmt.Errorf("too many services requested: %d, only %d allowed", len(services), *limit),
		}
	}
	return services, nil
}

func hasService(services []service, name string) bool {
	for _, service := range services {
		if service.Name == name {
			return true
		}
	}
	return false
}

// aliases are the host names under which a job reaches a service: that of its image without tag (both spellings of a
// slash), and those it asks for.
func aliases(s service) []string {
	name, _, _ := strings.Cut(s.Name, "@")
	if colon := strings.LastIndex(name, ":"); colon > strings.LastIndex(name, "/") {
		name = name[:colon]
	}
	name = strings.ReplaceAll(name, ":", "")
	names := []string{strings.ReplaceAll(name, "/", "__")}
	if strings.Contains(name, "/") {
		names = append(names, strings.ReplaceAll(name, "/", "-"))
	}
	return append(names, strings.Fields(strings.ReplaceAll(s.Alias, ",", " "))...)
}

// container is the specification that job and services have in common.
func (e *execution) container(image, kind string, privileged bool, mounts []map[string]any) map[string]any {
	settings := e.runner.Docker
	host := map[string]any{
		"Privileged": privileged,
		"Mounts":     mounts,
		"ExtraHosts": settings.ExtraHosts,
		"Dns":        settings.DNS,
		"ShmSize":    settings.ShmSize,
	}
	// The capabilities of services are Docker's own: the real runner has no keys for them.
	memory, cpus := settings.ServiceMemory, settings.ServiceCPUs
	if kind == "build" {
		memory, cpus = settings.Memory, settings.CPUs
		host["CapAdd"], host["CapDrop"] = settings.CapAdd, settings.CapDrop
		host["SecurityOpt"], host["Tmpfs"] = settings.SecurityOpt, settings.Tmpfs
	} else {
		host["SecurityOpt"], host["Tmpfs"] = settings.ServicesSecurityOpt, settings.ServicesTmpfs
	}
	host["Memory"] = bytesOf(memory)
	if number, err := strconv.ParseFloat(cpus, 64); err == nil {
		host["NanoCpus"] = int64(number * 1e9)
	}
	environment := append([]string(nil), e.runner.Environment...)
	for _, variable := range e.job.Variables {
		environment = append(environment, variable.Key+"="+variable.Value)
	}
	specification := map[string]any{
		"Image": image, "Env": environment, "Labels": e.labels(kind), "HostConfig": host, "Hostname": e.name("host"),
	}
	if kind == "build" {
		specification["User"] = settings.User
		e.join(specification, []string{"build"})
	}
	return specification
}

// join puts a container on the job's network, under these names.
func (e *execution) join(specification map[string]any, names []string) {
	host := specification["HostConfig"].(map[string]any)
	switch {
	case len(e.networks) > 0:
		network := e.networks[0]
		host["NetworkMode"] = network
		endpoints := map[string]any{network: map[string]any{"Aliases": names}}
		specification["NetworkingConfig"] = map[string]any{"EndpointsConfig": endpoints}
	case e.runner.Docker.NetworkMode != "":
		host["NetworkMode"] = e.runner.Docker.NetworkMode
	}
}

func (e *execution) createNetwork(ctx context.Context) error {
	settings := e.runner.Docker
	perBuild := e.runner.FeatureFlags["FF_NETWORK_PER_BUILD"]
	if value := e.job.variable("FF_NETWORK_PER_BUILD"); value != "" {
		perBuild = value == "true" || value == "1"
	}
	if settings.NetworkMode != "" || !perBuild {
		return nil
	}
	options := map[string]string{}
	if settings.NetworkMTU > 0 {
		options[mtuOption] = strconv.Itoa(settings.NetworkMTU)
	}
	name := e.name("network")
	// Noted first: what is created although the answer gets lost is removed too.
	e.networks = append(e.networks, name)
	return e.docker.createNetwork(ctx, map[string]any{
		"Name": name, "Labels": e.labels("network"), "Options": options, "EnableIPv6": settings.EnableIPv6,
	})
}

// createVolumes gives the mounts of the job's containers. A path alone is a volume that they share. Other than the real
// runner's, it does not outlive the job: there is no cache here. A path of the host must exist, and is not made.
func (e *execution) createVolumes(ctx context.Context) ([]map[string]any, error) {
	mounts := []map[string]any{}
	for _, volume := range append([]string{"/builds"}, e.runner.Docker.Volumes...) {
		parts := strings.Split(volume, ":")
		mount := map[string]any{"Type": "volume", "Source": parts[0]}
		switch {
		case len(parts) == 1:
			name := fmt.Sprintf("%s-%x", e.name("volume"), sha256.Sum256([]byte(volume)))[:len(e.name("volume"))+13]
			e.volumes = append(e.volumes, name)
			if err := e.docker.createVolume(ctx, name, e.labels("cache")); err != nil {
				return nil, err
			}
			mount["Source"], mount["Target"] = name, volume
		default:
			mount["Target"] = parts[1]
			mount["ReadOnly"] = len(parts) > 2 && strings.Contains(","+parts[2]+",", ",ro,")
			if path.IsAbs(parts[0]) {
				mount["Type"] = "bind"
			}
		}
		mounts = append(mounts, mount)
	}
	return mounts, nil
}

func (e *execution) create(ctx context.Context, name string, specification map[string]any) error {
	e.containers = append(e.containers, name)
	return e.docker.createContainer(ctx, name, specification)
}

// pullPolicies are those that the job wants for an image, else those of the configuration, as far as they are allowed.
func (d dockerConfig) pullPolicies(wanted []string) ([]string, error) {
	configured := []string(d.PullPolicy)
	if len(configured) == 0 {
		configured = []string{"always"}
	}
	permitted := d.AllowedPullPolicies
	if len(permitted) == 0 {
		permitted = configured
	}
	if len(wanted) == 0 {
		wanted = configured
	}
	var policies []string
	for _, policy := range wanted {
		if slices.Contains(permitted, policy) {
			policies = append(policies, policy)
		}
	}
	if len(policies) == 0 {
		cause := fmt.Errorf("pull_policy (%v) is not one of the allowed_pull_policies (%v)", wanted, permitted)
		return nil, &failure{"runner_system_failure", cause}
	}
	return policies, nil
}

// provide makes an image present as the pull policies say, each tried until one succeeds.
func (e *execution) provide(ctx context.Context, image string, wanted []string) error {
	policies, err := e.runner.Docker.pullPolicies(wanted)
	if err != nil {
		return err
	}
	var failures error
	for _, policy := range policies {
		present, err := e.docker.hasImage(ctx, image)
		switch {
		case err != nil:
		case policy == "always", policy == "if-not-present" && !present:
			e.trace.printf("Pulling docker image %s ...", image)
			err = e.docker.pull(ctx, image)
		case policy != "if-not-present" && policy != "never":
			err = fmt.Errorf("unknown pull policy %q", policy)
		case !present:
			err = errors.New("the image is not present")
		}
		if err == nil {
			return nil
		}
		failures = errors.Join(failures, fmt.Errorf("%s with pull policy %q: %w", image, policy, err))
		e.trace.printf("WARNING: %s", err)
	}
	return &failure{"image_pull_failure", failures}
}

// cleanUp removes everything the job has created; what cannot be removed is said in the trace.
func (e *execution) cleanUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	remove := func(names []string, with func(context.Context, string) error) {
		for _, name := range names {
			if err := with(ctx, name); err != nil && !isNotFound(err) {
				e.trace.printf("WARNING: %s is left behind: %s", name, err)
			}
		}
	}
	remove(e.containers, e.docker.removeContainer)
	remove(e.networks, e.docker.removeNetwork)
	remove(e.volumes, e.docker.removeVolume)
}

// name is the name of something that belongs to this job alone.
func (e *execution) name(what string) string {
	name := fmt.Sprintf("runner-%s-project-%d-concurrent-%d", e.runner.shortToken(), e.job.JobInfo.ProjectID, e.slot)
	if what == "host" {
		return strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	}
	return fmt.Sprintf("%s-job-%d-%s", name, e.job.ID, what)
}

// labels are those of the real runner's containers, and the configured ones.
func (e *execution) labels(kind string) map[string]string {
	labels := map[string]string{}
	for key, value := range map[string]string{
		"managed":          "true",
		"type":             kind,
		"job.id":           strconv.Itoa(e.job.ID),
		"job.url":          e.job.variable("CI_JOB_URL"),
		"job.ref":          e.job.GitInfo.Ref,
		"job.sha":          e.job.GitInfo.Sha,
		"job.before_sha":   e.job.GitInfo.BeforeSha,
		"job.timeout":      e.job.timeout().String(),
		"pipeline.id":      e.job.variable("CI_PIPELINE_ID"),
		"project.id":       strconv.Itoa(e.job.JobInfo.ProjectID),
		"runner.id":        e.runner.shortToken(),
		"runner.local_id":  strconv.Itoa(e.slot),
		"runner.system_id": e.systemID,
	} {
		labels[labelPrefix+key] = value
	}
	for key, value := range e.runner.Docker.ContainerLabels {
		labels[labelPrefix+key] = value
	}
	return labels
}

// allowed says whether one of the patterns matches a name; no pattern at all allows everything. In a pattern `*` stands
// for anything but a slash and `**` for anything.
func allowed(name string, patterns []string) bool {
	if len(patterns) == 0 {
		return true
	}
	for _, pattern := range patterns {
		expression := regexp.QuoteMeta(pattern)
		expression = strings.NewReplacer(`\*\*`, ".*", `\*`, "[^/]*", `\?`, "[^/]").Replace(expression)
		if regexp.MustCompile("^" + expression + "$").MatchString(name) {
			return true
		}
	}
	return false
}

func notAllowed(what, name string, patterns []string) error {
	cause := fmt.Errorf("the %q %s is not present on list of allowed %ss: %s", name, what, what, strings.Join(patterns, ", "))
	return &failure{"script_failure", cause}
}

// bytesOf reads a memory size as Docker writes it (512m, 2g); 0, which is no limit, when there is none.
func bytesOf(size string) int64 {
	size = strings.TrimSuffix(strings.ToLower(strings.TrimSpace(size)), "b")
	factor := int64(1)
	for i, unit := range []string{"k", "m", "g", "t"} {
		if number, found := strings.CutSuffix(size, unit); found {
			size, factor = number, int64(1)<<(10*(i+1))
		}
	}
	number, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		return 0
	}
	return number * factor
}
