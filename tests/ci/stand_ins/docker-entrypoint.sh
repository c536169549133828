#!/bin/sh
# Stand-in for the entrypoint of docker:cli: a docker command, or anything else, beside a Docker-in-Docker service.
set -eu
if [ "${1#-}" != "$1" ]; then
    set -- docker "$@"
fi
if [ -z "${DOCKER_HOST:-}" ] && [ ! -S /var/run/docker.sock ]; then
    export DOCKER_HOST=tcp://docker:2375
    if [ -n "${DOCKER_TLS_CERTDIR:-}" ]; then
        export DOCKER_HOST=tcp://docker:2376 DOCKER_TLS_VERIFY=1 DOCKER_CERT_PATH="$DOCKER_TLS_CERTDIR/client"
    fi
fi
exec "$@"
