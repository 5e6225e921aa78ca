"""The Fly Machines API: the only place that knows its words."""
