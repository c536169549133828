module gitlab-runners/sandbox/runner-stand-in

go 1.22

require github.com/BurntSushi/toml v1.5.0
