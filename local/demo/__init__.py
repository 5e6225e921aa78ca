"""The demo: three scenarios played against a real local stack, every answer shown and checked.

`command` starts the stack and plays `session_scenario`, `policy_scenarios` and `agent_scenario`.
`session_client` is also the example of how to call session_service; `report` prints and counts.
"""
