"""roost.session.v1.CheckpointService: the servicer, its parsers and its renderers."""
