"""container_service: the Fly Machines lifecycle in the words of containers."""
