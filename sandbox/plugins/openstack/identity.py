"""Identity: application credentials."""

from ..common import Work
from ..facts import Habits
from ..values import Plain
from .cloud import CloudResource, Gone, given


class ApplicationCredential(CloudResource):
    """`openstack.identity.ApplicationCredential`: a login of a user that may do less than the user."""

    token = "openstack:identity/applicationCredential:ApplicationCredential"
    unchangeable = True
    habits = Habits(
        auto_name=True,
        defaults={"unrestricted": False},
        sets=frozenset({"roles", "accessRules"}),
        filled_in=frozenset({"accessRules"}),
        refused=frozenset({"expiresAt"}),
    )

    def create(self, wanted: Plain, work: Work) -> None:
        roles = wanted.get("roles")
        rules = wanted.get("accessRules")
        request = given(
            name=wanted["name"],
            description=wanted.get("description"),
            roles=[{"name": name} for name in roles] if roles else None,
            secret=wanted.get("secret"),
            unrestricted=wanted.get("unrestricted", False),
            access_rules=[{name: rule[name] for name in ("path", "method", "service")} for rule in rules or ()] or None,
        )
        answer = self.cloud.call("identity", "POST", self._path(), body={"application_credential": request})
        made = answer["application_credential"]
        # Keystone tells the secret once.
        work.made(made["id"], secret=made["secret"])

    def read(self, id: str, state: Plain) -> Plain | None:
        try:
            found = self.cloud.call("identity", "GET", f"{self._path()}/{id}")["application_credential"]
        except Gone:
            return None
        return {
            "name": found["name"],
            "description": found.get("description"),
            "roles": [role["name"] for role in found["roles"]],
            "accessRules": [
                {name: rule[name] for name in ("id", "path", "method", "service")}
                for rule in found.get("access_rules") or ()
            ],
            "unrestricted": found["unrestricted"],
            "projectId": found["project_id"],
            "region": self.cloud.region,
            "secret": state.get("secret"),
        }

    def delete(self, id: str, state: Plain, work: Work) -> None:
        try:
            self.cloud.call("identity", "DELETE", f"{self._path()}/{id}")
        except Gone:
            return

    def _path(self) -> str:
        return f"/users/{self.cloud.owner[0]}/application_credentials"
