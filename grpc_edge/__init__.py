"""What both services do alike at their gRPC edge, below their own interceptors.

Connection settings, bytes that are no message, reflection, how long a client waits before it calls
again, and names of environment variables that neither service knows. It knows no session and no
container, and imports neither service.
"""
