"""Finds security group rules that nobody declared.

Each declared rule is a resource, so a rule that somebody adds by hand is no resource's business: no refresh would ever
show it. This one knows all declared rules of a group. `pulumi refresh` makes it look for others and shows them, and the
next update removes them.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from components.openstack_client import OpenStackProvider

if TYPE_CHECKING:
    from openstack.network.v2.security_group_rule import SecurityGroupRule


class _DeclaredRulesProvider(OpenStackProvider):
    found = frozenset({"undeclared"})
    replacing = frozenset({"group"})

    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(str(props["group"]), props | {"undeclared": {}})

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        with self.openstack(props) as cloud:
            rules = list(cloud.network.security_group_rules(security_group_id=id_))
        undeclared = {rule.id: _described(rule) for rule in rules if rule.id not in props["rules"]}
        return ReadResult(id_, props | {"undeclared": undeclared})

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        olds, news = (props | {"rules": _unordered(props["rules"])} for props in (_olds, _news))
        result = super().diff(_id, olds, news)
        result.changes = result.changes or bool(_olds["undeclared"])
        return result

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        if _olds["undeclared"]:
            with self.openstack(_news) as cloud:
                for rule in _olds["undeclared"]:
                    cloud.network.delete_security_group_rule(rule)
        return UpdateResult(_news | {"undeclared": {}})


def _unordered(rules: Any) -> Any:
    """The rules as a set, which a preview's Unknown among them can be in. All of them are one Unknown where the engine
    asks what would follow if a rule was replaced."""
    return set(rules) if isinstance(rules, list) else rules


def _described(rule: "SecurityGroupRule") -> str:
    ports = "-".join(str(port) for port in dict.fromkeys((rule.port_range_min, rule.port_range_max)) if port)
    peer = rule.remote_ip_prefix or rule.remote_group_id or "anywhere"
    way = "from" if rule.direction == "ingress" else "to"
    return " ".join(filter(None, (rule.direction, rule.ether_type, rule.protocol or "any", ports, way, peer)))


class DeclaredRules(Resource, module="openstack", name="DeclaredRules"):
    """All declared rules of a security group; `undeclared` are the others by id, once a refresh has found them.

    `cloud` is what the stack's layers say of the openstack provider.
    """

    undeclared: pulumi.Output[dict[str, str]]

    def __init__(
        self,
        name: str,
        group: pulumi.Input[str],
        rules: list[pulumi.Output[str]],
        cloud: Mapping[str, str] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        properties = {"group": group, "rules": rules, "undeclared": None, "cloud": cloud}
        super().__init__(_DeclaredRulesProvider(), name, properties, opts)
