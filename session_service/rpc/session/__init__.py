"""roost.session.v1.SessionService: the servicer, its parsers and its renderers."""
