#!/bin/sh
# Stand-in for the entrypoint of docker:dind: with DOCKER_TLS_CERTDIR, makes a CA, a server's and a client's
# certificate there and starts dockerd with TLS on port 2376; without, dockerd listens on 2375.
set -eu

make_certificate() { # name, extension
    folder="$DOCKER_TLS_CERTDIR/$1"
    mkdir -p "$folder"
    openssl ecparam -genkey -name prime256v1 -noout -out "$folder/key.pem"
    openssl req -new -key "$folder/key.pem" -subj "/CN=docker:dind $1" -out "$folder/csr.pem"
    printf '%s\n' "$2" >"$folder/extensions"
    openssl x509 -req -in "$folder/csr.pem" -CA "$DOCKER_TLS_CERTDIR/ca/cert.pem" -CAkey "$DOCKER_TLS_CERTDIR/ca/key.pem" \
        -CAcreateserial -days 2 -extfile "$folder/extensions" -out "$folder/cert.pem"
    # Last: whoever waits for this file finds the others.
    cp "$DOCKER_TLS_CERTDIR/ca/cert.pem" "$folder/ca.pem"
}

if [ $# -gt 0 ] && [ "${1#-}" = "$1" ] && [ "$1" != dockerd ]; then
    exec docker-entrypoint.sh "$@"
fi
if [ "${1:-}" = dockerd ]; then shift; fi

if [ -n "${DOCKER_TLS_CERTDIR:-}" ]; then
    mkdir -p "$DOCKER_TLS_CERTDIR/ca"
    openssl ecparam -genkey -name prime256v1 -noout -out "$DOCKER_TLS_CERTDIR/ca/key.pem"
    openssl req -new -x509 -days 2 -key "$DOCKER_TLS_CERTDIR/ca/key.pem" -subj '/CN=docker:dind CA' -addext basicConstraints=critical,CA:TRUE \
        -out "$DOCKER_TLS_CERTDIR/ca/cert.pem"
    addresses=$(ip -o address | awk '{ sub("/.*", "", $4); printf ",IP:%s", $4 }')
    make_certificate server "subjectAltName=DNS:docker,DNS:localhost,DNS:$(hostname)$addresses"
    make_certificate client extendedKeyUsage=clientAuth
    # The job's user may be another one.
    chmod 0644 "$DOCKER_TLS_CERTDIR/client/key.pem"
    server="$DOCKER_TLS_CERTDIR/server"
    set -- --host=tcp://0.0.0.0:2376 --tlsverify --tlscacert="$server/ca.pem" --tlscert="$server/cert.pem" \
        --tlskey="$server/key.pem" "$@"
else
    set -- --host=tcp://0.0.0.0:2375 "$@"
fi

# With control groups of version 2, those with processes cannot have others below them.
if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
    mkdir -p /sys/fs/cgroup/init
    while read -r process; do
        echo "$process" >/sys/fs/cgroup/init/cgroup.procs || true
    done </sys/fs/cgroup/cgroup.procs
    sed 's/^/+/; s/ / +/g' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control
fi

# The variant of iptables that this kernel can do.
variant=nft
iptables-nft -t nat -nL >/dev/null 2>&1 || variant=legacy
for command in iptables ip6tables; do
    for suffix in '' -save -restore; do
        ln -sf "/usr/sbin/xtables-$variant-multi" "/usr/local/sbin/$command$suffix"
    done
done

exec dockerd --host=unix:///var/run/docker.sock "$@"
