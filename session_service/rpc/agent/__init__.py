"""roost.agent.v1.AgentSessionService over gRPC.

`servicer` has the calls: parse the request, call a use case, render the reply. `parse`, `fields`,
`listings` and `streams` check requests and collect all faults; `render` builds replies.
"""
