"""Training on data that stay where they are: sites dial out to a server, over Flower (the extra ``federated``).

The server deals, aggregates and calibrates, and never sees data. A site gets its subnet, trains it on its own data and
sends it back (docs/federated.md).
"""

from skerry.data.on_sites import OnSites
from skerry.federated.server import Federated
from skerry.federated.site import AtSite, Site, client_app
from skerry.federated.sites import TooFewSites
from skerry.federated.speeds import measured_capacities

__all__ = ["AtSite", "Federated", "OnSites", "Site", "TooFewSites", "client_app", "measured_capacities"]
