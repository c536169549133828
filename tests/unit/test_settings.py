"""What a stack file may say, and the one line that each mistake gets."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from renderers.config_toml import Cache, ConfigToml, Dind, Limits, config_toml
from settings import DockerHost, ObjectStoreCache, OpenStackHost, Prune, S3Cache, Settings, SettingsError, load
from settings.advanced import FREE_OF_DOCKER, REFUSED_OF_RUNNERS, known_keys
from settings.layers import owner_of
from settings.networks import spellings
from settings.reference import page
from settings.schema import SCHEMAS, stack_file_schema
from tests.certificates import certificate

HOST: dict[str, Any] = {
    "kind": "openstack",
    "flavor": "m1.small",
    "image": "debian-13",
    "network": "runners",
    "keyPair": {"name": "me"},
    "sshFrom": ["192.0.2.0/24"],
}
RUNNER: dict[str, Any] = {"project": 1, "tags": ["docker"]}
SCALER: dict[str, Any] = {"plugin": "ghcr.io/sardinasystems/fleeting-plugin-openstack:1.2.3", "maxInstances": 5}


def loaded(stack: str = "dev", **config: Any) -> Settings:
    values = {"host": HOST, "runners": {"app": RUNNER}} | config
    return load(
        stack,
        {
            f"gitlab-runners:{key}": value if isinstance(value, str) else json.dumps(value)
            for key, value in values.items()
            if value is not None
        },
    )


def mistake(stack: str = "dev", **config: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        loaded(stack, **config)
    return str(caught.value)


def test_a_short_stack_file_is_enough() -> None:
    settings = loaded()
    assert isinstance(settings.host, OpenStackHost)
    assert settings.host.mtu == "auto"
    assert settings.runners["app"].scope == "project_type"
    assert settings.runners["app"].builds == "none"


def test_an_existing_engine_is_a_host() -> None:
    settings = loaded(host={"kind": "docker", "url": "ssh://ops@docker.example:2222", "mtu": 1400})
    assert isinstance(settings.host, DockerHost)
    assert settings.host_count == 1


def test_certificates_are_taken_as_they_are() -> None:
    pem = certificate()
    assert loaded(host=HOST | {"caCertificates": [f"\n{pem}\n", pem]}).host.ca_certificates == (pem, pem)


@pytest.mark.parametrize(
    "text",
    [
        "/etc/ssl/ca.pem",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        certificate() + "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        certificate() + certificate(),
    ],
    # The same in every process: a certificate is not.
    ids=["a path", "not one", "a key beside it", "two in one"],
)
def test_what_is_no_certificate_is_not_shown_either(text: str) -> None:
    assert mistake(host=HOST | {"caCertificates": [text]}) == (
        "gitlab-runners:host.caCertificates[0]: must be one certificate in PEM: -----BEGIN CERTIFICATE----- …"
    )


def test_machines_prune_unless_they_are_told_not_to() -> None:
    host, off = loaded().host, loaded(host=HOST | {"prune": False}).host
    assert isinstance(host, OpenStackHost)
    assert isinstance(off, OpenStackHost)
    assert host.prune == Prune(older_than_hours=168, free_percent=20)
    assert off.prune is None


def test_configuration_of_providers_is_left_alone() -> None:
    config = {"gitlab-runners:host": json.dumps(HOST), "gitlab-runners:runners": json.dumps({"app": RUNNER})}
    assert load("dev", config | {"openstack:cloud": "prod", "gitlab:baseUrl": "https://gitlab.example/"})


def test_managers_get_the_time_of_the_longest_job() -> None:
    runners = {"quick": RUNNER | {"maximumTimeout": 600}, "slow": RUNNER | {"maximumTimeout": 7200}}
    assert loaded(runners=runners).stop_grace_seconds == 7200


def test_an_image_may_be_given_by_tag_or_digest() -> None:
    assert loaded(manager={"version": "v19.0.0"}).manager.reference == "gitlab/gitlab-runner:v19.0.0"
    digest = "sha256:" + "0" * 64
    assert loaded(manager={"image": "mirror.example/runner", "version": digest}).manager.reference == (
        f"mirror.example/runner@{digest}"
    )


def test_a_token_is_not_shown() -> None:
    settings = loaded(runners={"app": {"token": "glrt-very-secret"}})
    assert "very-secret" not in repr(settings)


LOGIN = {"user": "robot", "password": "very-secret"}


def test_a_login_is_not_shown() -> None:
    settings = loaded(runners={"app": RUNNER | {"registryLogins": {"registry.example:5000/team": LOGIN}}})
    login = settings.runners["app"].registry_logins["registry.example:5000/team"]
    assert (login.user, login.password.get_secret_value()) == ("robot", "very-secret")
    assert "very-secret" not in repr(settings)


@pytest.mark.parametrize(
    ("runner", "line"),
    [
        (
            {"registryLogins": {"https://registry.example": LOGIN}},
            "must be what images begin with: registry.example.com:5000 or registry.example.com/team",
        ),
        ({"registryLogins": {"docker.io": {"user": "robot"}}}, ".registryLogins.docker.io.password: is missing"),
        (
            {"registryLogins": {"docker.io": LOGIN | {"password": ["very-secret"]}}},
            ".registryLogins.docker.io.password: should be a valid string",
        ),
        (
            {"registryLogins": {"docker.io": LOGIN}, "environment": {"DOCKER_AUTH_CONFIG": "very-secret"}},
            ": has registryLogins and environment.DOCKER_AUTH_CONFIG; leave one out",
        ),
    ],
)
def test_a_wrong_login(runner: dict[str, Any], line: str) -> None:
    message = runner_mistake(**runner)
    assert line in message
    assert "very-secret" not in message


def test_a_cache_of_images() -> None:
    host = loaded(host=HOST | {"registryCache": {"login": LOGIN}}).host
    assert isinstance(host, OpenStackHost)
    assert host.registry_cache is not None
    assert host.registry_cache.upstream == "https://registry-1.docker.io"
    assert "very-secret" not in repr(host)
    assert "host.registryCache.upstream: " in mistake(host=HOST | {"registryCache": {"upstream": "docker.io"}})
    existing = {"kind": "docker", "url": "unix:///var/run/docker.sock", "registryCache": {}}
    assert mistake(host=existing) == "gitlab-runners:host.registryCache: is only there for kind: openstack"


CACHE: dict[str, Any] = {
    "kind": "s3",
    "server": "s3.example",
    "bucket": "b",
    "accessKey": "a",
    "secretKey": "very-secret",
}


def test_the_cache_of_a_stack() -> None:
    settings = loaded(cache=CACHE)
    assert isinstance(settings.cache, S3Cache)
    assert settings.cache.secret_key.get_secret_value() == "very-secret"
    assert "very-secret" not in repr(settings)
    assert isinstance(loaded(cache={"kind": "openstack"}).cache, ObjectStoreCache)
    assert loaded().cache is None


@pytest.mark.parametrize(
    ("cache", "line"),
    [
        ({"kind": "gcs"}, "cache.kind: must be s3 or openstack"),
        (
            CACHE | {"server": "https://s3.example"},
            'cache.server: "https://s3.example": must be a host and perhaps a port',
        ),
        (CACHE | {"secretKey": ["very-secret"]}, "cache.secretKey: should be a valid string"),
        ({key: value for key, value in CACHE.items() if key != "secretKey"}, "cache.secretKey: is missing"),
        ({"kind": "openstack", "bucket": "b"}, "cache.bucket: unknown key"),
        (
            {"kind": "openstack", "container": "A_b"},
            'cache.container: "A_b": use lower-case letters, digits and hyphens',
        ),
    ],
)
def test_a_wrong_cache(cache: dict[str, Any], line: str) -> None:
    message = mistake(cache=cache)
    assert line in message
    assert "very-secret" not in message


def test_a_cache_in_the_cloud_needs_machines_there() -> None:
    host = {"kind": "docker", "url": "unix:///var/run/docker.sock"}
    assert mistake(host=host, cache={"kind": "openstack"}) == (
        "gitlab-runners:cache.kind: openstack needs host.kind: openstack; name a bucket with kind: s3"
    )
    assert loaded(host=host, cache=CACHE).cache is not None


def test_the_name_of_a_container_has_an_end() -> None:
    runners = {"a": RUNNER}
    stack = "s" * 45
    assert "set cache.container" in mistake(stack, cache={"kind": "openstack"}, runners=runners)
    assert loaded(stack, cache={"kind": "openstack", "container": "short"}, runners=runners).cache is not None


def test_the_cache_is_set_in_one_place() -> None:
    azure = {"cache": {"Type": "azure", "Shared": True, "azure": {"AccountName": "a"}}}
    runners = {"app": RUNNER | {"advanced": azure}}
    assert loaded(runners=runners).runners["app"].advanced == azure
    assert mistake(runners=runners, cache=CACHE) == "gitlab-runners:runners.app.advanced.cache.Type: is set by cache"
    given = {"app": RUNNER | {"advanced": {"cache": {"s3": {"SecretKey": "very-secret"}}}}}
    assert mistake(runners=given) == (
        "gitlab-runners:runners.app.advanced.cache.s3.SecretKey: is set by the stack's cache.secretKey"
    )


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"host": HOST | {"flavour": "x"}}, "host.flavour: unknown key; did you mean flavor?"),
        ({"runer": {}}, "runer: unknown key; did you mean runners?"),
        ({"host": HOST | {"count": "three"}}, 'host.count: "three": should be a valid integer'),
        ({"host": HOST | {"count": 0}}, "host.count: 0: should be greater than or equal to 1"),
        ({"host": None}, "host: is missing"),
        (
            {"host": HOST | {"availabilityZone": "a", "availabilityZones": ["b"]}},
            "host: has both availabilityZone and availabilityZones; leave one out",
        ),
        (
            {"host": HOST | {"dockerVolume": {"size": 9, "availabilityZone": "a", "sameZone": True}}},
            "host.dockerVolume: has both availabilityZone and sameZone; leave one out",
        ),
        ({"host": HOST | {"overrides": {"1": {"flavr": "x"}}}}, "overrides.1.flavr: unknown key; did you mean flavor?"),
        (
            {"host": HOST | {"overrides": {"2": {"flavor": "x"}}}},
            'host.overrides.2: "2": there is no such host; there is only dev-1',
        ),
        (
            {"host": HOST | {"count": 3, "overrides": {"dev-4": {"flavor": "x"}}}},
            'host.overrides.dev-4: "dev-4": there is no such host; there are dev-1 to dev-3',
        ),
        (
            {"host": HOST | {"overrides": {"1": {}, "dev-1": {}}}},
            'host.overrides.dev-1: is the same host as "1"; say it once',
        ),
        (
            {"host": HOST | {"count": 2}, "runners": {"app": RUNNER | {"hosts": [1, 3]}}},
            "runners.app.hosts[1]: 3: there is no such host; there are dev-1 to dev-2",
        ),
        (
            {"runners": {"app": RUNNER | {"hosts": ["other-1"]}}},
            'runners.app.hosts[0]: "other-1": there is no such host; there is only dev-1',
        ),
        (
            {"runners": {"app": RUNNER | {"hosts": [0]}}},
            "runners.app.hosts[0]: 0: must be a host's number or name, like 2 or <stack>-2",
        ),
        (
            {"host": {"kind": "docker", "url": "unix:///run/docker.sock", "overrides": {"1": {}}}},
            "host.overrides: is only there for kind: openstack",
        ),
        (
            {"runners": {"app": RUNNER | {"executor": "autoscaler"}}},
            "runners.app: executor: autoscaler needs autoscaler, with plugin and maxInstances",
        ),
        ({"runners": {"app": RUNNER | {"autoscaler": SCALER}}}, "autoscaler is only there for executor: autoscaler"),
        (
            {"runners": {"app": RUNNER | {"executor": "autoscaler", "autoscaler": SCALER, "limit": 3}}},
            "runners.app: limit follows from autoscaler.maxInstances and capacityPerInstance; leave it out",
        ),
        *[
            (
                {"runners": {"app": RUNNER | {"executor": "autoscaler", "autoscaler": SCALER | {"plugin": plugin}}}},
                f'runners.app.autoscaler.plugin: "{plugin}": must be a reference with a version, like ghcr.io/',
            )
            for plugin in ("fleeting-plugin-openstack", "ghcr.io/x/fleeting-plugin-openstack:latest")
        ],
        (
            {
                "runners": {
                    "app": RUNNER
                    | {"executor": "autoscaler", "autoscaler": SCALER | {"policies": [{"timezone": "Berlin"}]}}
                }
            },
            'runners.app.autoscaler.policies[0].timezone: "Berlin": is not a time zone; write one like UTC or Europe/',
        ),
        (
            {
                "host": {"kind": "docker", "url": "unix:///run/docker.sock"},
                "runners": {"app": RUNNER | {"executor": "autoscaler", "autoscaler": SCALER}},
            },
            "runners.app.executor: autoscaler: needs host.kind: openstack",
        ),
        ({"host": {"kind": "podman"}}, "host.kind: must be openstack or docker"),
        ({"host": {key: value for key, value in HOST.items() if key != "image"}}, "host.image: is missing"),
        ({"runners": {}}, "runners: is empty; name at least one"),
        ({"runners": {"app": {"tags": ["x"]}}}, "app: needs exactly one of project, group, instance and token"),
        (
            {"runners": {"app": RUNNER | {"group": 2}}},
            "runners.app: needs exactly one of project, group, instance and token",
        ),
        (
            {"runners": {"app": RUNNER | {"maximumTimeout": 599}}},
            "runners.app.maximumTimeout: 599: should be greater than or equal to 600",
        ),
        ({"runners": {"app": RUNNER | {"tags": ["a,b"]}}}, 'runners.app.tags[0]: "a,b": is not a runner tag'),
        ({"runners": {"app": {"project": 1}}}, "runners.app: has no tags and takes no untagged jobs"),
        ({"runners": {"App": RUNNER}}, 'runners.App: "App": use lower-case letters, digits and hyphens'),
        (
            {"runners": {"app": RUNNER | {"volumes": ["/var/run/docker.sock:/var/run/docker.sock"]}}},
            'runners.app.volumes[0]: "/var/run/docker.sock:/var/run/docker.sock": must not give docker.sock to jobs',
        ),
        (
            {"runners": {"app": {"token": "glrt-x", "tags": ["x"]}}},
            "runners.app: tags is kept by the registration; with a token of your own set it in GitLab",
        ),
        (
            {"runners": {"app": RUNNER | {"builds": "kaniko"}}},
            "runners.app.builds: \"kaniko\": should be 'none', 'rootless' or 'dind'",
        ),
        ({"host": HOST | {"sshFrom": []}}, "host.sshFrom: is empty; name at least one"),
        ({"host": HOST | {"sshFrom": ["192.0.2.7/24"]}}, 'host.sshFrom[0]: "192.0.2.7/24": is not a CIDR'),
        ({"host": HOST | {"sshFrom": ["0.0.0.0/0"]}}, 'host.sshFrom[0]: "0.0.0.0/0": lets the whole internet'),
        (
            {"host": HOST | {"updates": {"rebootWindow": "2-5"}}},
            'host.updates.rebootWindow: "2-5": must be two times of day, like 02:00-05:00 (UTC)',
        ),
        ({"host": HOST | {"updates": {"rebootWindow": "05:00-05:00"}}}, '"05:00-05:00": must be two times of day'),
        ({"host": HOST | {"updates": {"rebootWindow": "02:00-24:00"}}}, '"02:00-24:00": must be two times of day'),
        ({"host": HOST | {"metricsFrom": ["0.0.0.0/0"]}}, 'host.metricsFrom[0]: "0.0.0.0/0": lets the whole internet'),
        (
            {"host": HOST | {"metricsFrom": ["192.0.2.7/32"]}, "manager": {"advanced": {"listen_address": ":9252"}}},
            "manager.advanced.listen_address: is set by the host's metricsFrom",
        ),
        (
            {"host": {"kind": "docker", "url": "ssh://ops@docker.example", "metricsFrom": ["192.0.2.7/32"]}},
            "host.metricsFrom: is only there for kind: openstack",
        ),
        ({"host": HOST | {"ssh": {"jump_host": "x"}}}, "host.ssh.jump_host: unknown key; did you mean jumpHost?"),
        ({"gitlab_url": "https://gitlab.example"}, "gitlab_url: unknown key; did you mean gitlabUrl?"),
        ({"host": HOST | {"sshFrom": ["::/0"]}}, 'host.sshFrom[0]: "::/0": lets the whole internet'),
        ({"host": HOST | {"sshFrom": ["fe80::%eth0/64"]}}, 'host.sshFrom[0]: "fe80::%eth0/64": is not a CIDR'),
        ({"host": HOST | {"sshFrom": ["::ffff:192.0.2.7"]}}, 'host.sshFrom[0]: "::ffff:192.0.2.7": is IPv4 in IPv6'),
        ({"host": HOST | {"sshFrom": ["::192.0.2.0/120"]}}, 'host.sshFrom[0]: "::192.0.2.0/120": is IPv4 in IPv6'),
        (
            {"host": HOST | {"metricsFrom": ["192.0.2.7"], "ssh": {"port": 9252}}},
            "host: ssh.port is 9252, where metricsFrom has metrics served",
        ),
        ({"host": HOST | {"tags": ["ci/docker"]}}, 'host.tags[0]: "ci/docker": is not a tag of OpenStack'),
        ({"host": HOST | {"tags": ["a,b"]}}, 'host.tags[0]: "a,b": is not a tag of OpenStack'),
        ({"host": HOST | {"tags": ["t" * 61]}}, f'host.tags[0]: "{"t" * 61}": is not a tag of OpenStack'),
        ({"host": HOST | {"tags": list(map(str, range(51)))}}, "host.tags: "),
        ({"host": HOST | {"metadata": {"a/b": "c"}}}, 'host.metadata: "a/b" is not a key of Nova\'s metadata'),
        ({"host": HOST | {"metadata": {"a": "b" * 256}}}, "host.metadata: a: has 256 characters; Nova takes 255"),
        (
            {"host": HOST | {"overrides": {"1": {"metadata": {"ä": "b"}}}}},
            'host.overrides.1.metadata: "\\u00e4" is not a key of Nova\'s metadata',
        ),
        (
            {"host": HOST | {"dockerVolume": {"size": 0}}},
            "host.dockerVolume.size: 0: should be greater than or equal to 1",
        ),
        ({"host": HOST | {"mtu": 1279}}, 'host.mtu: 1279: must be "auto" or a number of bytes from 1280'),
        ({"host": HOST | {"mtu": "1450"}}, 'host.mtu: "1450": must be "auto" or a number of bytes'),
        (
            {"host": HOST | {"prune": {"olderThanHours": 0}}},
            "host.prune.olderThanHours: 0: should be greater than or equal to 1",
        ),
        (
            {"host": HOST | {"prune": {"freePercent": 95}}},
            "host.prune.freePercent: 95: should be less than or equal to",
        ),
        (
            {"host": HOST | {"prune": {"olderThanHours": 1}}, "runners": {"app": RUNNER | {"maximumTimeout": 3601}}},
            "host.prune.olderThanHours: 1: is shorter than the longest maximumTimeout (3601 s), so containers",
        ),
        *[
            (
                {"host": HOST | {"registryMirrors": [url]}},
                f'host.registryMirrors[0]: "{url}": must be http:// or https://',
            )
            for url in ("mirror.example", "https://mirror.example/v2", "https://me:secret@mirror.example", "https://")
        ],
        *[
            ({"host": HOST | {"proxy": {"https": url}}}, "host.proxy.https: must be http:// or https:// with a host")
            for url in ("proxy.example", "socks5://proxy.example", "http://me:secret@proxy.example", "http://x/%20")
        ],
        ({"host": HOST | {"proxy": {"noProxy": ["a"]}}}, "host.proxy: needs http, https or both"),
        (
            {"host": HOST | {"proxy": {"http": "http://proxy.example", "noProxy": ['a"b']}}},
            "host.proxy.noProxy[0]: must be a name, a domain like .example.com, an address or a network",
        ),
        ({"host": HOST | {"keyPair": {}}}, "host.keyPair: needs exactly one of name and publicKey"),
        (
            {"host": HOST | {"ssh": {"address": "floating"}}},
            "host: ssh.address is floating, which needs floatingIpPool",
        ),
        (
            {"host": HOST | {"ssh": {"options": {"StrictHostKeyChecking": "no"}}}},
            "host.ssh: options.StrictHostKeyChecking is set by the program",
        ),
        ({"host": {"kind": "docker", "url": "http://x"}}, 'host.url: "http://x": must be unix:///path, ssh://'),
        ({"manager": {"concurrent": 0}}, "manager.concurrent: 0: should be greater than or equal to 1"),
        ({"manager": {"stopGrace": 60}}, "manager.stopGrace: 60: is shorter than the longest maximumTimeout (3600)"),
        ({"gitlabUrl": "gitlab.example"}, 'gitlabUrl: "gitlab.example": must be an http:// or https:// URL'),
    ],
)
def test_a_mistake_gets_one_clear_line(config: dict[str, Any], line: str) -> None:
    text = mistake(**config)
    assert text.startswith("gitlab-runners:")
    assert line in text
    assert len(text.splitlines()) == 1


def test_a_key_in_the_wrong_place_is_not_suggested_again() -> None:
    text = mistake(memory="2g")
    assert "gitlab-runners:memory: unknown key" in text
    assert "did you mean memory" not in text


def runner_mistake(**runner: Any) -> str:
    text = mistake(runners={"app": RUNNER | runner})
    assert len(text.splitlines()) == 1
    return text.removeprefix("gitlab-runners:runners.app")


@pytest.mark.parametrize(
    ("runner", "line"),
    [
        ({"builds": "rootless"}, ": builds: rootless needs allowedImages that name the images which may build"),
        ({"builds": "rootless", "allowedImages": ["*/*"]}, ": builds: rootless needs allowedImages that name"),
        (
            {"builds": "rootless", "allowedImages": ["quay.io/buildah/stable:*"], "noNewPrivileges": True},
            ": noNewPrivileges is not possible with builds: rootless",
        ),
        (
            {"builds": "dind", "allowedServices": ["postgres:*"]},
            ": builds: dind needs Docker-in-Docker in allowedServices, for instance docker:*dind*",
        ),
        (
            {"allowedPullPolicies": ["if-not-present"]},
            ": allowedPullPolicies has no always, the default of pullPolicies, so jobs could not pull by it",
        ),
        (
            {"pullPolicies": ["always", "never"], "allowedPullPolicies": ["always"]},
            ": allowedPullPolicies has no never so jobs could not pull by it",
        ),
        ({"allowedPullPolicies": ["sometimes"]}, ".allowedPullPolicies[0]: \"sometimes\": should be 'always'"),
        ({"pullPolicies": ["sometimes"]}, ".pullPolicies[0]: \"sometimes\": should be 'always'"),
        ({"allowedImages": [""]}, '.allowedImages[0]: "": '),
        ({"servicesLimit": -1}, ".servicesLimit: -1: should be greater than or equal to 0"),
        (
            {"jobLimits": {"memory": "2 GB"}},
            '.jobLimits.memory: "2 GB": must be a whole number with k, m or g like 512m',
        ),
        ({"jobLimits": {"memory": "2048"}}, '.jobLimits.memory: "2048": must be a whole number with k, m or g'),
        ({"serviceLimits": {"memory": "5m"}}, '.serviceLimits.memory: "5m": must be a whole number with k, m or g'),
        ({"jobLimits": {"cpus": "two"}}, '.jobLimits.cpus: "two": must be a number of processors above 0'),
        ({"serviceLimits": {"cpus": 0}}, ".serviceLimits.cpus: 0: must be a number of processors above 0"),
        ({"jobLimits": {"cpu": 1}}, ".jobLimits.cpu: unknown key; did you mean cpus?"),
    ],
)
def test_what_jobs_may_do_is_checked(runner: dict[str, Any], line: str) -> None:
    assert runner_mistake(**runner).startswith(line)


def test_limits_are_written_as_docker_takes_them() -> None:
    runner = RUNNER | {"jobLimits": {"memory": "2g", "cpus": 1.5}, "serviceLimits": {"memory": "512m", "cpus": "2"}}
    app = loaded(runners={"app": runner}).runners["app"]
    assert (app.job_limits.memory, app.job_limits.cpus) == ("2g", "1.5")
    assert (app.service_limits.memory, app.service_limits.cpus) == ("512m", "2")


@pytest.mark.parametrize(
    ("volume", "line"),
    [
        *[
            (
                f"{folder}:/x:ro",
                f"must not give {folder} of the host to jobs; use /cache or a folder right in /mnt or /srv",
            )
            for folder in (
                "/",
                "/boot",
                "/dev",
                "/dev/sda",
                "/dev/shm",
                "/etc",
                "/etc/docker",
                "/etc/pki",
                "/home/debian",
                "/lib31",
                "/mnt",
                "/proc",
                "/root",
                "/run",
                "/snap",
                "/srv",
                "/sys",
                "/tmp",
                "/var",
                "/var/lib/cloud",
                "/var/lib/docker",
                "/var/lib/docker/volumes",
                "/var/lib/dpkg",
                "/var/lib/systemd",
                "/var/log",
                "/var/run",
                "/var/spool/cron",
                # A job that has the folder above it could put a link there.
                "/cache/jobs",
                "/srv/cache/jobs",
                "/srv/$CI_PROJECT_NAME",
            )
        ],
        ("/var/lib/:/v:ro", "must not give /var/lib of the host to jobs"),
        ("/srv/../var/log:/v:ro", "must not give /var/log of the host to jobs"),
        ("/etc/../etc/shadow:/e:ro", "must not give /etc/shadow of the host to jobs"),
        ("/usr/../etc:/e:ro", "must not give /etc of the host to jobs"),
        ("//proc/1:/p:ro", "must not give /proc/1 of the host to jobs"),
        ("/usr:/usr", "must not let jobs write /usr of the host; add :ro"),
        ("/usr:/usr:ro,z", "must not let jobs write /usr of the host; add :ro, and no other mode"),
        ("/usr/local/bin:/b:rw", "must not let jobs write /usr/local/bin of the host; add :ro"),
        ("/lib32:/l", "must not let jobs write /lib32 of the host; add :ro"),
        ("/etc/docker/certs.d:/c", "must not let jobs write /etc/docker/certs.d of the host; add :ro"),
        ("/run/docker.sock:/d:ro", "must not give docker.sock to jobs: it is root on the host; use builds: dind"),
        ("/srv/containerd.sock:/d", "must not give containerd.sock to jobs"),
        # Of a manager, of the registry cache, of a job of another runner, and any other.
        *[
            (f"{name}:/x:ro", f"must not give the volume {name} to jobs; the names of theirs start with jobs.")
            for name in (
                "sandbox-1-std-1643016",
                "jobs-1-app-1643016",
                "sandbox-1-registry-cache-1643016",
                "runner-t1_abc-project-1-concurrent-0-cache-3c3f060a0374fc8bc39395164f415a70",
                "jobs",
                "jobs.",
                "jobs_data",
                "Jobs.cache",
                "jobs./../etc",
                ".",
                "./jobs.cache",
                "..",
                "~/cache",
                "",
                "jobs.ü",
            )
        ],
        ("C:\\cache:/x", "must be a path in the container, or like"),
        ("cache", "must be a path in the container, or like /srv/cache:/cache:ro"),
        ("jobs.cache:cache", "must be a path in the container"),
        ("jobs.cache:/", "must be a path in the container"),
        ("/cache:ro", "must be a path in the container"),
        ("jobs.a:/b:ro:rw", "has a mode that is none of"),
        ("/srv/cache:/x:rshared", "has a mode that is none of ro, rw or z"),
        ("/srv/cache:/x:", "has a mode that is none of ro, rw or z"),
    ],
)
def test_jobs_get_no_folder_with_which_they_would_have_the_host(volume: str, line: str) -> None:
    assert runner_mistake(volumes=["/cache", volume]).startswith(f".volumes[1]: {json.dumps(volume)}: {line}")


@pytest.mark.parametrize(
    "volume",
    [
        "/cache",
        "jobs.cache:/var/cache",
        "jobs.Cache_2-x:/var/cache:ro",
        "/cache:/cache",
        "/mnt/cache/:/cache:rw,z",
        "/srv/cache:/cache",
        "/srv/app.sock:/app.sock",
        "/usr:/usr:ro",
        "/etc/docker/certs.d:/etc/docker/certs.d:ro",
    ],
)
def test_other_volumes_are_possible(volume: str) -> None:
    assert loaded(runners={"app": RUNNER | {"volumes": [volume]}}).runners["app"].volumes == (volume,)


@pytest.mark.parametrize(
    ("given", "network"),
    [
        ("192.0.2.7", "192.0.2.7/32"),
        ("192.0.2.0/255.255.255.0", "192.0.2.0/24"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("2001:0db8:0000:0000:0000:0000:0000:0000/32", "2001:db8::/32"),
        ("2001:DB8::1", "2001:db8::1/128"),
        ("::1", "::1/128"),
    ],
)
def test_a_network_has_one_spelling_and_is_said_once(given: str, network: str) -> None:
    host = loaded(host=HOST | {"sshFrom": [given, network, given], "metricsFrom": [network, given]}).host
    assert isinstance(host, OpenStackHost)
    assert host.ssh_from == host.metrics_from == (network,)
    assert given in spellings(network)
    assert network not in spellings(network)


def test_tags_are_said_once_too() -> None:
    host = loaded(host=HOST | {"tags": ["a", "b", "a"]}).host
    assert isinstance(host, OpenStackHost)
    assert host.tags == ("a", "b")


ADVANCED: dict[str, Any] = {
    "output_limit": 8192,
    "pre_build_script": "umask 027",
    "unhealthy_interval": "1h30m",
    "feature_flags": {"FF_USE_FASTZIP": True},
    "cache": {"Type": "azure", "Shared": True, "azure": {"AccountName": "cache", "AccountKey": "very-secret"}},
    "docker": {
        "shm_size": 300000000,
        "helper_image_flavor": "ubuntu",
        "cap_drop": ["NET_RAW"],
        "cap_add": ["SYS_PTRACE", "CAP_CHOWN", "ipc_lock"],
        "sysctls": {"net.core.somaxconn": "1024", "kernel.shmmax": "1", "fs.mqueue.msg_max": "1"},
        "container_labels": {"team": "x"},
        "oom_score_adjust": 500,
        "runtime": "runsc",
        "ulimit": {"nofile": "1024:2048"},
        "services": [{"name": "postgres:17", "alias": "db"}],
    },
}


def test_keys_of_config_toml_without_a_setting_go_through() -> None:
    settings = loaded(
        runners={"app": RUNNER | {"advanced": ADVANCED}}, manager={"advanced": {"listen_address": ":9252"}}
    )
    assert settings.runners["app"].advanced == ADVANCED
    assert settings.manager.advanced == {"listen_address": ":9252"}


@pytest.mark.parametrize(
    ("advanced", "line"),
    [
        (
            {"output_limt": 1},
            "output_limt: GitLab Runner has no key output_limt in config.toml; did you mean output_limit?",
        ),
        (
            {"docker": {"shm_sise": 1}},
            "docker.shm_sise: GitLab Runner has no key docker.shm_sise in config.toml; did you",
        ),
        ({"shm_size": 1}, "shm_size: GitLab Runner has no key shm_size in config.toml; did you mean docker.shm_size?"),
        (
            {"docker": {"services": [{"nme": "x"}]}},
            "docker.services[0].nme: GitLab Runner has no key docker.services.nme",
        ),
        ({"docker.shm_size": 1}, "docker.shm_size: must be written as tables: docker: {shm_size: …}"),
        ({"output_limit": "8192"}, "output_limit: must be a whole number"),
        ({"output_limit": True}, "output_limit: must be a whole number"),
        ({"shell": 1}, "shell: must be text"),
        ({"shell": "zsh"}, "shell: must be bash, sh, cmd, pwsh or powershell"),
        ({"debug_trace_disabled": "yes"}, "debug_trace_disabled: must be true or false"),
        ({"unhealthy_interval": 120}, "unhealthy_interval: must be a duration like 30s or 1h30m"),
        ({"docker": 1}, "docker: must be a table: keys with values"),
        ({"docker": {"dns": "192.0.2.1"}}, "docker.dns: must be a list of texts"),
        ({"docker": {"services": ["postgres"]}}, "docker.services: must be a list of tables"),
        ({"docker": {"tmpfs": ["/tmp"]}}, "docker.tmpfs: must be a map of texts"),
        ({"docker": {"services_tmpfs": {"/tmp": 1}}}, "docker.services_tmpfs: must be a map of texts"),
        ({"feature_flags": {"FF_USE_FASTZIP": "yes"}}, "feature_flags: must be a map of true or false"),
        ({"token": "glrt-x"}, "token: is set by the program: GitLab gives it"),
        ({"executor": "shell"}, "executor: is set by executor"),
        ({"limit": 3}, "limit: is set by limit"),
        ({"docker": {"image": "x"}}, "docker.image: is set by image"),
        ({"docker": {"memory": "2g"}}, "docker.memory: is set by jobLimits.memory"),
        ({"docker": {"volumes": []}}, "docker.volumes: is set by volumes"),
        ({"docker": {"network_mtu": 1400}}, "docker.network_mtu: is set by the host's mtu"),
        ({"docker": {"enable_ipv6": True}}, "docker.enable_ipv6: is set by the host's ipv6"),
        (
            {"feature_flags": {"FF_NETWORK_PER_BUILD": False}},
            "feature_flags.FF_NETWORK_PER_BUILD: is set by the program: the MTU of jobs depends on it",
        ),
        (
            {"docker": {"network_mode": "host"}},
            "docker.network_mode: must not be set: each job has a network of its own, never the host's",
        ),
        (
            {"docker": {"privileged": True}},
            "docker.privileged: is set by builds: no job container is privileged; use builds: dind",
        ),
        ({"docker": {"allowed_privileged_images": ["x"]}}, "docker.allowed_privileged_images: is set by builds"),
        ({"docker": {"services_privileged": True}}, "docker.services_privileged: is set by builds; use builds: dind"),
        ({"docker": {"security_opt": []}}, "docker.security_opt: is set by builds and noNewPrivileges"),
        ({"docker": {"devices": ["/dev/sda"]}}, "docker.devices: must not be set: it gives jobs devices of the host"),
        (
            {"docker": {"userns_mode": "host"}},
            "docker.userns_mode: must not be set: it takes away what keeps jobs apart",
        ),
        ({"docker": {"pid_mode": "host"}}, "docker.pid_mode: must not be set: it takes away what keeps jobs apart"),
        (
            {"docker": {"volumes_from": ["m"]}},
            "docker.volumes_from: must not be set: the manager's container holds docker.s",
        ),
        (
            {"docker": {"cap_add": ["NET_ADMIN", "CAP_SYS_ADMIN"]}},
            "docker.cap_add: must not have NET_ADMIN: with it a job is not kept to its container; besides Docker's own",
        ),
        *[
            (
                {"docker": {"cap_add": ["chown", name]}},
                f"docker.cap_add: must not have {name}: with it a job is not kept",
            )
            for name in ("ALL", "AUDIT_CONTROL", "cap_sys_admin", "NEW_IN_LINUX", "SYSLOG", "SYS_NICE", "SYS_TIME")
        ],
        ({"docker": {"gpus": "all"}}, "docker.gpus: must not be set: it gives jobs devices of the host"),
        (
            {"docker": {"service_gpus": "all"}},
            "docker.service_gpus: must not be set: it gives jobs devices",
        ),
        (
            {"docker": {"links": ["x:y"]}},
            "docker.links: must not be set: it tells jobs of other containers",
        ),
        (
            {"docker": {"volume_driver": "x"}},
            "docker.volume_driver: must not be set: it can give jobs folders",
        ),
        ({"docker": {"oom_kill_disable": True}}, "docker.oom_kill_disable: must not be set: a job without memory left"),
        (
            {"docker": {"oom_score_adjust": -1}},
            "docker.oom_score_adjust: must be from 0 to 1000: the host's own",
        ),
        (
            {"docker": {"runtime": "nvidia"}},
            "docker.runtime: must be crun, kata, kata-runtime, runc or runsc",
        ),
        (
            {"docker": {"sysctls": {"net.ipv4.ip_forward": "1", "kernel.core_pattern": "|/x"}}},
            "docker.sysctls: must not have kernel.core_pattern; only settings of a container's own are possible",
        ),
        (
            {"docker": {"ulimit": {"nofile": "9", "rtprio": "99"}}},
            "docker.ulimit: must not have rtprio; there are core",
        ),
        (
            {"docker": {"container_labels": {"a": "b", "gitlab-runners.stack": "x"}}},
            "docker.container_labels: must not have gitlab-runners.stack; GitLab Runner's and the program's own labels",
        ),
        (
            {"docker": {"volume_driver_ops": {"type": "none", "o": "bind", "device": "/"}}},
            "docker.volume_driver_ops: must not be set: it can give jobs folders of the host; use volumes",
        ),
        ({"kubernetes": {"namespace": "ci"}}, "kubernetes: belongs to another executor; jobs run with docker"),
    ],
)
def test_keys_of_config_toml_are_checked(advanced: dict[str, Any], line: str) -> None:
    assert runner_mistake(advanced=advanced).startswith(f".advanced.{line}")


@pytest.mark.parametrize(
    ("advanced", "line"),
    [
        ({"concurrent": 0}, "concurrent: is set by manager.concurrent"),
        ({"runners": []}, "runners: is set by runners"),
        (
            {"listen_adress": ":9252"},
            "listen_adress: GitLab Runner has no key listen_adress in config.toml; did you mean",
        ),
        ({"output_limit": 1}, "output_limit: GitLab Runner has no key output_limit in config.toml"),
        ({"session_server": {"session_timeout": "1800"}}, "session_server.session_timeout: must be a whole number"),
        (
            {"experimental": {"usage_logger": {"log_dir": "/var/log/../../host/run"}}},
            "experimental.usage_logger.log_dir: must be a folder below /var/log of the manager's container",
        ),
    ],
)
def test_global_keys_of_config_toml_are_checked(advanced: dict[str, Any], line: str) -> None:
    assert mistake(manager={"advanced": advanced}).startswith(f"gitlab-runners:manager.advanced.{line}")


def test_every_key_for_jobs_containers_is_either_free_or_refused_for_a_reason() -> None:
    known = {key.removeprefix("runners[].") for key in known_keys() if key.startswith("runners[].docker.")}
    assert not FREE_OF_DOCKER & set(REFUSED_OF_RUNNERS)
    assert known == FREE_OF_DOCKER | {key for key in REFUSED_OF_RUNNERS if key.startswith("docker.")}


def test_what_the_program_writes_is_never_free_to_be_written_again() -> None:
    written = tomllib.loads(
        config_toml(
            ConfigToml(
                name="n",
                url="u",
                token="t",
                concurrent=1,
                check_interval=1,
                log_level="info",
                log_format="json",
                limit=1,
                image="i",
                runner_id=1,
                pull_policies=["always"],
                allowed_images=["x"],
                allowed_services=["x"],
                allowed_pull_policies=["always"],
                services_limit=1,
                job_limits=Limits("1g", "1"),
                service_limits=Limits("1g", "1"),
                mtu=1400,
                dind=Dind(None),
                cache=Cache("s3.example", "b", "us-east-1", "a", "s", path="ci"),
            )
        )
    )
    (runner,) = written.pop("runners")
    docker = runner.pop("docker")
    flags = runner.pop("feature_flags")
    cache = runner.pop("cache")
    s3 = cache.pop("s3")
    for table, keys in (
        (runner, runner),
        ({"docker": docker}, docker),
        ({"feature_flags": flags}, flags),
        ({"cache": {"s3": s3}}, s3),
    ):
        text = mistake(runners={"app": RUNNER | {"advanced": table}})
        assert len(text.splitlines()) == len(keys)
        assert "has no key" not in text
        assert "must be" not in text
    for key, value in cache.items():
        # They are free for a cache of another kind.
        given = RUNNER | {"advanced": {"cache": {key: value}}}
        assert mistake(runners={"app": given}, cache=CACHE).endswith(f"advanced.cache.{key}: is set by cache")
    assert len(mistake(manager={"advanced": written}).splitlines()) == len(written)


def test_each_mistake_in_advanced_is_told_and_no_value_is() -> None:
    text = mistake(
        runners={"app": RUNNER | {"advanced": {"cache": {"azure": {"AccountKey": 12345}}, "shell": ["12345"]}}}
    )
    assert len(text.splitlines()) == 2
    assert "12345" not in text


def test_who_else_may_use_what_builds_may_do_is_told() -> None:
    right = {"project": 1, "tags": ["x"], "protected": True}
    named = {"allowedImages": ["quay.io/buildah/stable:*"]}
    runners = {
        "right": right | {"builds": "dind"},
        "harmless": {"group": 2, "tags": ["x"]},
        "group": {"group": 2, "tags": ["x"], "builds": "dind"},
        "all": {"instance": True, "tags": ["x"], "builds": "dind", "protected": True},
        "free": right | {"builds": "rootless", "locked": False} | named,
        "own": {"token": "glrt-x", "builds": "rootless"} | named,
    }
    better = "better: project, locked: true and protected: true"
    assert loaded(runners=runners).warnings == [
        "gitlab-runners:runners.group: builds: dind: takes jobs of every project of a group and takes jobs of "
        f"unprotected branches; {better}",
        f"gitlab-runners:runners.all: builds: dind: takes jobs of every project of GitLab; {better}",
        f"gitlab-runners:runners.free: builds: rootless: is not locked to its project; {better}",
        "gitlab-runners:runners.own: builds: rootless: see in GitLab that this runner is locked to one project and "
        "protected: the stack does not keep it",
    ]


def test_every_mistake_is_told_at_once() -> None:
    assert len(mistake(host=HOST | {"mtu": 1, "count": 0}, runners={}).splitlines()) == 3


def test_a_wrong_token_is_not_repeated() -> None:
    assert "glrt-very-secret" not in mistake(runners={"app": {"token": "glrt-very-secret", "project": 1, "limit": 0}})


def test_each_runner_has_a_description_of_its_own() -> None:
    """By it the stack finds what an interrupted update registered."""
    same = {name: RUNNER | {"description": "builds"} for name in ("app", "web")}
    assert mistake(runners=same) == (
        'gitlab-runners:runners.web.description: "builds": is the description of the runner app too; give each its own'
    )
    # As GitLab gets it: the default is the stack's name and the runner's.
    assert "is the description of the runner web too" in mistake(
        runners={"web": RUNNER, "app": RUNNER | {"description": "dev web"}}
    )
    given = {"token": "glrt-x"}
    assert len(loaded(runners={"app": given, "web": given}).runners) == 2


def test_names_must_fit_docker_and_host_names() -> None:
    assert "at most 63 are possible" in mistake(runners={"a" * 55: RUNNER})
    assert "use lower-case letters" in mistake(stack="Team_A")


def test_a_stack_without_a_file_is_named() -> None:
    assert "stacks/Pulumi.typo.yaml" in mistake(stack="typo", host=None, runners=None)


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_published_schemas_are_the_models(name: str) -> None:
    published = json.loads(Path(f"docs/reference/{name}.schema.json").read_text())
    command = f"python -m settings.schema {name} > docs/reference/{name}.schema.json"
    assert published == SCHEMAS[name](), f"run: {command}"


def test_the_published_reference_is_the_models() -> None:
    published = Path("docs/reference/stack-file.md").read_text()
    assert published == page(), "run: python -m settings.reference > docs/reference/stack-file.md"


def in_editor(**config: Any) -> list[str]:
    """What an editor underlines in a stack file."""
    file = {"config": {f"gitlab-runners:{key}": value for key, value in config.items()}}
    return [error.json_path for error in Draft202012Validator(stack_file_schema()).iter_errors(file)]


def test_editors_accept_what_the_program_accepts() -> None:
    runners = {"app": RUNNER, "own": {"token": {"secure": "v1:abc"}}}
    assert in_editor(host=HOST | {"mtu": 1400}, runners=runners) == []
    limited = RUNNER | {"jobLimits": {"memory": "2g", "cpus": 1.5}, "serviceLimits": {"cpus": "2"}}
    secret = {"cache": {"Type": "azure", "azure": {"AccountKey": {"secure": "v1:abc"}}}}
    assert (
        in_editor(host=HOST, runners={"app": limited | {"advanced": ADVANCED}, "s3": RUNNER | {"advanced": secret}})
        == []
    )


def test_editors_underline_what_the_program_refuses() -> None:
    assert in_editor(host=HOST, runners={"app": RUNNER | {"maximumTimeout": 3}})
    assert in_editor(host=HOST | {"flavour": "x"}, runners={"app": RUNNER})
    assert in_editor(host=HOST | {"mtu": 1000}, runners={"app": RUNNER})
    assert in_editor(host=HOST, runners={"app": RUNNER}, runer={})
    assert in_editor(host=HOST)
    assert in_editor(host=HOST, runners={"app": RUNNER | {"jobLimits": {"memory": "2 GB"}}})
    assert in_editor(host=HOST, runners={"app": RUNNER | {"advanced": {"docker": {"privileged": True}}}})
    assert in_editor(host=HOST, runners={"app": RUNNER | {"advanced": {"output_limit": "1"}}})
    assert in_editor(host=HOST, runners={"app": RUNNER | {"advanced": {"shell": "zsh"}}})


def schema_of(path: Path) -> str:
    """Name of the schema of a file of stacks."""
    if path.name.startswith("Pulumi."):
        stack = path.name.removeprefix("Pulumi.").removesuffix(".yaml")
        return "team-stack" if owner_of(stack) is not None else "stack"
    return "team" if path.parent.name == "teams" else "environment"


@pytest.mark.parametrize("path", sorted(Path("stacks").rglob("*.yaml")), ids=str)
def test_every_stack_file_and_layer_fits_its_schema(path: Path) -> None:
    Draft202012Validator(SCHEMAS[schema_of(path)]()).validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("path", sorted(Path("stacks").rglob("*.yaml")), ids=str)
def test_every_stack_file_and_layer_names_its_schema(path: Path) -> None:
    up = "../" * (len(path.parts) - 1)
    schema = f"{up}docs/reference/{schema_of(path)}.schema.json"
    assert path.read_text().startswith(f"# yaml-language-server: $schema={schema}\n")


def underlined(schema: str, file: dict[str, Any]) -> bool:
    """Whether an editor underlines something in a layer or a team's stack file."""
    return not Draft202012Validator(SCHEMAS[schema]()).is_valid(file)


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("environment", {"config": {"openstack:cloud": "dev", "gitlab-runners:host": {"flavor": "m1.small"}}}),
        ("environment", {"config": {"gitlab-runners:host": {"mtu": 1400}, "gitlab:insecure": True}}),
        ("environment", {"config": {}}),
        ("team", {"gitlab": {"projects": [1]}, "config": {"gitlab-runners:runners": {"app": {"tags": ["docker"]}}}}),
        ("team", {"config": {"gitlab-runners:host": {"proxy": {"http": "http://proxy.example"}}}}),
        ("team-stack", {"config": {"gitlab-runners:runners": {"app": {"token": {"secure": "v1:abc"}}}}}),
        ("team-stack", {"config": {"gitlab:token": {"secure": "v1:abc"}}, "encryptionsalt": "v1:abc"}),
        ("team-stack", {"config": {"gitlab-runners:host": {"ssh": {"user": "ubuntu", "port": 2222}}}}),
        ("environment", {"config": {"gitlab-runners:host": {"ssh": {"jumpHost": "bastion"}}}, "allow": []}),
        ("environment", {"allow": ["gitlab-runners:host.ssh.identityFile", "openstack:authUrl"]}),
    ],
)
def test_a_layer_may_say_a_part(schema: str, file: dict[str, Any]) -> None:
    assert not underlined(schema, file)


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("environment", {"config": {"gitlab-runners:runners": {}}}),
        ("environment", {"config": {"gitlab:token": "glpat"}}),
        ("environment", {"config": {"openstack:password": "x"}}),
        ("environment", {"config": {"gitlab-runners:manager": {"advanced": {"sentry_dsn": "https://x"}}}}),
        ("environment", {"gitlab": {"projects": [1]}}),
        ("team", {"config": {"openstack:cloud": "mine"}}),
        ("team", {"config": {"gitlab-runners:gitlabUrl": "https://gitlab.example"}}),
        ("team", {"config": {"gitlab-runners:runners": {"app": {"token": {"secure": "v1:abc"}}}}}),
        ("team", {"config": {"gitlab-runners:host": {"flavour": "m1.small"}}}),
        ("team", {"gitlab": {"projects": ["payments/app"]}}),
        ("team-stack", {"config": {"gitlab-runners:runner": {}}}),
        ("team-stack", {"gitlab": {"projects": [1]}}),
        ("team-stack", {"config": {"gitlab:token": "glpat"}}),
        ("team-stack", {"config": {"gitlab:baseUrl": "https://gitlab.example"}}),
        ("team-stack", {"config": {"gitlab-runners:gitlabUrl": "https://gitlab.example"}}),
        ("team-stack", {"config": {"gitlab-runners:host": {"kind": "docker"}}}),
        ("team-stack", {"config": {"gitlab-runners:host": {"ssh": {"jumpHost": "bastion"}}}}),
        ("team-stack", {"unknown": {}}),
        ("team", {"config": {"gitlab-runners:host": {"ssh": {"options": {"Compression": "yes"}}}}}),
        ("team", {"allow": []}),
        ("environment", {"allow": ["gitlab:token"]}),
        ("stack", {"config": {"gitlab-runners:host": {}, "gitlab-runners:runners": {}}, "unknown": {}}),
    ],
)
def test_a_layer_is_offered_nothing_that_it_may_not_say(schema: str, file: dict[str, Any]) -> None:
    assert underlined(schema, file)
