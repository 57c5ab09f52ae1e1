"""What things are and what they cost: models, accelerators, clusters, operators, collectives, measured tables."""

from profiles.cost import Cost, CostModel, cost_model
from profiles.families import load_model, num_params
from profiles.files import BadInput
from profiles.hardware import Accelerator, Cluster, Link, load_accelerator, load_cluster
from profiles.model import ModelSpec, ParamSpec
from profiles.tables import MeasuredTable, read_table, write_table

__all__ = ["Accelerator", "BadInput", "Cluster", "Cost", "CostModel", "Link", "MeasuredTable", "ModelSpec", "ParamSpec",
           "cost_model", "load_accelerator", "load_cluster", "load_model", "num_params", "read_table", "write_table"]
