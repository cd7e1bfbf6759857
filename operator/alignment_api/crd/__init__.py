"""The CustomResourceDefinition of AlignmentJob, made of the types and of the table of rules."""

from alignment_api.crd.schema import crd_yaml, custom_resource_definition

__all__ = ["crd_yaml", "custom_resource_definition"]
