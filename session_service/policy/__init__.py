"""PolicyService: projects' policies, tenants' tiers, users' preferences.

The policy in force for a session follows from them and from the request that started it. A change
is applied to live sessions in the background.
"""
