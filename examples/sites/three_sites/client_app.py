"""A site: flower-supernode --node-config 'site=0' says which one. Its data are read here, and stay here."""

from flwr.app import Context
from torch.nn import functional as F

import skerry
from skerry.federated import AtSite, Site, client_app
from three_sites.task import settings, shards


def site(context: Context, job: str) -> Site:
    """Return this site's part of the training."""
    number = int(context.node_config["site"])
    session = skerry.Session(loss_fn=F.cross_entropy, runtime=AtSite(), **settings(context.run_config))
    return Site(session, shards(number), number=number)


app = client_app(site)
