"""An OpenStack, a GitLab and machines with Docker, all on this computer, for trying and testing the program."""
