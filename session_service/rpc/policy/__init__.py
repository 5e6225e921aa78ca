"""roost.session.v1.PolicyService: the servicer, its parsers and its renderers."""
