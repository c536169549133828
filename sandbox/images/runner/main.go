// A stand-in for GitLab Runner, made for the sandbox of this project: it reads the real config.toml, authenticates to
// GitLab as a runner manager, polls for jobs and runs the script of each in a container of its own. It is used only
// where gitlab/gitlab-runner cannot be pulled. It knows the Docker executor alone, and neither clones repositories nor
// moves caches and artifacts.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

// The GitLab Runner that this program stands in for; set by the linker.
var version = "unknown"

const description = "stand-in for GitLab Runner, made for the sandbox; not GitLab Runner"

func main() {
	os.Exit(command(os.Args[1:], os.Stdout, os.Stderr))
}

// command runs the program with arguments as the real one takes them and returns its exit status.
func command(arguments []string, out, errOut io.Writer) int {
	global := flag.NewFlagSet("gitlab-runner", flag.ContinueOnError)
	global.SetOutput(errOut)
	showVersion := global.Bool("version", false, "print the version")
	global.BoolVar(showVersion, "v", false, "print the version")
	for _, ignored := range []string{"log-level", "l", "log-format"} {
		global.String(ignored, "", "accepted, without effect: config.toml says it")
	}
	if err := global.Parse(arguments); err != nil {
		return 2
	}
	if *showVersion {
		fmt.Fprintf(out, "Version:      %s (%s)\nGo version:   %s\nOS/Arch:      %s/%s\n",
			version, description, runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return 0
	}
	name, rest := "run", []string(nil)
	if global.NArg() > 0 {
		name, rest = global.Arg(0), global.Args()[1:]
	}

	flags := flag.NewFlagSet("gitlab-runner "+name, flag.ContinueOnError)
	flags.SetOutput(errOut)
	path := flags.String("config", "/etc/gitlab-runner/config.toml", "configuration file")
	flags.StringVar(path, "c", *path, "configuration file")
	// What the real image's default command passes; jobs never run as a user of the manager's container.
	for _, ignored := range []string{"user", "u", "working-directory", "d", "service", "n"} {
		flags.String(ignored, "", "accepted, without effect")
	}
	if err := flags.Parse(rest); err != nil {
		return 2
	}

	level := new(slog.LevelVar)
	log := slog.New(slog.NewTextHandler(errOut, &slog.HandlerOptions{Level: level}))
	switch name {
	case "run":
		log.Warn("This is a "+description, "version", version)
		return run(newManager(*path, log, level))
	case "verify":
		return verify(*path, log)
	default:
		fmt.Fprintf(errOut, "gitlab-runner (stand-in): unknown command %q; there are run, verify and --version\n", name)
		return 2
	}
}

var (
	errQuit      = errors.New("SIGQUIT: no new jobs, running ones are finished")
	errTerminate = errors.New("aborted: the runner was told to end at once")
)

// run works until it is told to end: SIGQUIT lets jobs finish, SIGTERM and SIGINT abort them, also after a SIGQUIT.
func run(m *manager) int {
	quit, quitNow := context.WithCancelCause(context.Background())
	abort, abortNow := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		for received := range signals {
			m.log.Warn("Received a signal", "signal", received.String())
			if received != syscall.SIGQUIT {
				abortNow(errTerminate)
			}
			quitNow(errQuit)
		}
	}()
	return m.work(quit, abort)
}

// verify asks GitLab about every configured runner, as `gitlab-runner verify` does.
func verify(path string, log *slog.Logger) int {
	config, err := loadConfig(path)
	if err != nil {
		log.Error("Failed to load config", "error", err)
		return 1
	}
	id, err := systemID(path)
	if err != nil {
		log.Warn("The system ID cannot be kept", "error", err)
	}
	status := 0
	for _, runner := range config.Runners {
		if err := newGitLab(runner, id).verify(context.Background()); err != nil {
			log.Error("Verifying runner... failed", "runner", runner.shortToken(), "error", err)
			status = 1
			continue
		}
		log.Info("Verifying runner... is valid", "runner", runner.shortToken())
	}
	return status
}
