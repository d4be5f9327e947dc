"""Replicas of a model on a Ray cluster, for jobs larger than a machine."""

from promptmill.core.feature import Feature, PartEntry

FEATURE = Feature(
    words="replicas of a model on a Ray cluster",
    options="promptmill.features.ray.options:OPTIONS",
    order_parts=(PartEntry("ray", "promptmill.features.ray.ray_cluster:RayCluster"),),
)
