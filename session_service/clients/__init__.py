"""Clients of the services that session_service calls: container_service over gRPC, previews and
activity hooks of applications over HTTP, and the S3 bucket of checkpoints.
"""
