"""Which providers a model's name leads to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from memoryos_server.tools.llm.provider import Deployment, Provider, Route, matches


@dataclass(frozen=True, slots=True)
class Catalog:
    """What the providers' file says.

    Attributes:
        providers: The providers by name, in the order of the file.
        routes: Names and patterns of models, and where they lead; in the order of the file.
        aliases: Other names of models.
        default: The model that answers for any that nobody serves; "": none does.
        retries: How often a call is tried again before its first byte.
    """

    providers: Mapping[str, Provider] = field(default_factory=dict)
    routes: Mapping[str, Route] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    default: str = ""
    retries: int = 2

    def written(self, model: str, *, free: bool = False) -> Route | None:
        """The route of a name as the file has it: exact, alias, `provider/model`, pattern of a route or of a provider.

        Args:
            model: The name.
            free: It stands in the file: `provider/model` may name models that the provider does not serve by itself.
        """
        model = self.aliases.get(model, model)
        if (route := self.routes.get(model)) is not None and "*" not in model:
            return route
        before, slash, after = model.partition("/")
        provider = self.providers.get(before) if slash and after else None
        if provider is not None and (free or provider.models is None or matches(after, provider.models)):
            return route_to(provider, after)
        for pattern, route in self.routes.items():
            if "*" in pattern and matches(model, (pattern,)):
                return replace(route, deployments=tuple(_named(one, model) for one in route.deployments))
        for provider in self.providers.values():
            if matches(model, provider.models or ()):
                return route_to(provider, model)
        return None

    @property
    def listing(self) -> Sequence[Provider]:
        """The providers that serve what their own list has, in the order in which they are asked."""
        return [one for one in self.providers.values() if one.models is None]

    @property
    def names(self) -> Collection[str]:
        """The models that the file names."""
        exact = [name for name in self.routes if "*" not in name]
        of_providers = [name for one in self.providers.values() for name in one.models or () if "*" not in name]
        return dict.fromkeys([*exact, *self.aliases, *of_providers])


def route_to(provider: Provider, model: str) -> Route:
    """The route to a provider's own model."""
    return Route(model, (Deployment(provider, model),))


def _named(deployment: Deployment, model: str) -> Deployment:
    """A deployment of a pattern; one without a model of its own has the name that was asked for."""
    return deployment if deployment.model else Deployment(deployment.provider, model, deployment.weight)
