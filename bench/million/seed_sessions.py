"""The rows of sessions, by SQL: skewed as those of a real installation are.

Of `count` sessions over 80 days 90 % have ended, and a tenth is live: all of one tenant. Project
`nest` has half of all sessions, user `u0` a hundredth. Rank by rank the other projects have fewer.
What is rare is also old: the 20 oldest sessions are at slot `attic`, and some of them are PAUSING,
for ever. Nothing is due within a day, so that the passes of a running service change no row.
"""

from __future__ import annotations

from bench.million.dice import dice, rank
from bench.million.steps import Step
from session_service.storage.tables import LIVE_STATES

_DAYS = "interval '80 days'"
#: The number of a session, from its id.
NUMBER = "('x' || right(session_id::text, 12))::bit(48)::bigint"
_OWNER = f"CASE WHEN n <= %(count)s * 0.9 AND {dice('n', 1)} < 0.01 THEN 0 ELSE k END"
_PROJECT = f"""CASE WHEN owner = 0 OR {dice("owner", 2)} < 0.5 THEN 'nest'
    ELSE 'project-' || {rank(1000, "owner", 3)} END"""
_SPEC = """CASE WHEN mod(n, 20) = 0
    THEN jsonb_build_object('image', 'roost/counter', 'mounts',
        jsonb_build_array(jsonb_build_object('volume_id', 'vol_' || n, 'path', '/data')))
    ELSE '{"image": "roost/counter"}' END"""
_STATE = """CASE WHEN n <= 7 THEN 'PAUSING' WHEN n <= 10 THEN 'ENDING'
    WHEN n <= %(count)s * 0.9 THEN 'ENDED' WHEN mod(n, 5) = 0 THEN 'ACTIVE' ELSE 'PAUSED' END"""
_SESSIONS = f"""
INSERT INTO sessions (session_id, tenant, project_id, user_id, slot, state, transition, generation,
    epoch, spec, fingerprint, policy, verified_at, create_time, start_time, last_active_time,
    pause_time, pause_depth, end_time, purge_time, end_reason, due_at, lease_until, deadline,
    start_count, change_time, event_sequence, checkpoint_id, seen_at)
SELECT *, last_active_time FROM (
SELECT lpad(to_hex(n), 32, '0')::uuid, 'default', project,
    CASE WHEN n = 11 THEN 'oldest' ELSE 'u' || owner END,
    CASE WHEN n <= 20 THEN 'attic' ELSE 'default' END, state,
    CASE state WHEN 'PAUSING' THEN 'PAUSE' WHEN 'ENDING' THEN 'END' END, 2, 9,
    {_SPEC}, md5('x') || md5('y'), %(policy)s::jsonb,
    CASE WHEN state = 'ACTIVE' THEN now() + interval '1 day' ELSE at + interval '1 hour' END,
    at, at AS start_time,
    CASE WHEN state = 'ACTIVE' THEN now() - {dice("n", 4)} * interval '20 minutes'
        ELSE least(now(), at + {dice("n", 5)} * interval '1 hour') END AS last_active_time,
    CASE WHEN state IN ('PAUSED', 'PAUSING') THEN least(now(), at + interval '1 hour') END,
    CASE WHEN state IN ('PAUSED', 'PAUSING') THEN 'SUSPENDED' END,
    CASE WHEN state = 'ENDED' THEN at + interval '2 hours' END,
    CASE WHEN state = 'ENDED' THEN at + interval '2 hours 10 minutes' END,
    CASE WHEN state IN ('ENDED', 'ENDING') THEN 'REQUESTED' END,
    CASE WHEN state = 'ENDED' THEN now() + interval '2 days' + {dice("n", 6)} * interval '30 days'
        WHEN n <= 10 THEN now() + interval '1 year'
        ELSE now() + interval '1 day' + {dice("n", 6)} * interval '5 days' END,
    CASE WHEN n <= 10 THEN now() + interval '1 year' END,
    CASE WHEN n <= 10 THEN now() + interval '1 year' END, 3, at, 6,
    CASE WHEN state IN ('ACTIVE', 'PAUSED') AND mod(n, 2) = 0
        THEN ('c' || lpad(to_hex(n * 4096 + 2), 31, '0'))::uuid END
FROM (
    SELECT n, owner, at, {_PROJECT} AS project, {_STATE} AS state FROM (
        SELECT n, at, {_OWNER} AS owner FROM (
            SELECT n, mod(n, %(count)s / 10) AS k,
                now() - {_DAYS} * ((%(count)s - n)::float8 / %(count)s) AS at
            FROM generate_series(1::bigint, %(count)s) AS n
        ) numbered
    ) owned
) placed
) seen
"""
#: What the trigger would have counted.
_LIVE_COUNTS = f"""
INSERT INTO live_session_counts (tenant, live_count)
SELECT tenant, count(*) FROM sessions WHERE state IN ({LIVE_STATES}) GROUP BY tenant
"""
_CONTAINERS = """
INSERT INTO containers (session_id, generation, name, app, container_id, state, region, boot_id,
    boot_time, start_time, wanted, create_time, destroy_time)
SELECT session_id, g, 'roost-' || session_id || '-' || g, 'roost-local',
    substr(md5(session_id::text || g), 1, 14),
    CASE WHEN g = 1 OR s.state = 'ENDED' THEN 'DESTROYED' WHEN s.state = 'ACTIVE' THEN 'STARTED'
        ELSE 'SUSPENDED' END,
    'iad', md5(session_id::text)::uuid, create_time, create_time, g = 2 AND s.state <> 'ENDED',
    create_time, CASE WHEN g = 1 OR s.state = 'ENDED' THEN create_time + interval '1 hour' END
FROM sessions s, generate_series(1, 2) AS g
"""
_EVENTS = f"""
INSERT INTO session_events (session_id, sequence, type, state, generation, details, create_time)
SELECT session_id, g, 'ACTIVE', 'ACTIVE', 1, '{{}}',
    now() - interval '6 days' + {dice(NUMBER, 7)} * interval '5 days' + g * interval '1 minute'
FROM sessions, generate_series(1, 3) AS g WHERE state <> 'ENDED' OR mod({NUMBER}, 4) = 0
ORDER BY 7
"""


def _time_id(at: str, number: str, kind: str) -> str:
    """An id that is ordered by time, like a UUIDv7."""
    milliseconds = f"lpad(to_hex((extract(epoch FROM {at}) * 1000)::bigint), 12, '0')"
    return f"({milliseconds} || '7{kind}' || lpad(to_hex({number}), 18, '0'))::uuid"


_LUCK = dice("n * 2 + g", 8)
_OUTCOME = f"""CASE WHEN method = 'EndSession' THEN NULL WHEN g = 1 THEN 'CREATED'
    WHEN {_LUCK} < 0.85 THEN 'REUSED' WHEN {_LUCK} < 0.95 THEN 'RESUMED'
    WHEN {_LUCK} < 0.98 THEN 'RESTARTED' WHEN {_LUCK} < 0.99 THEN 'RESTORED' END"""
_DECISIONS = f"""
INSERT INTO decisions (decision_id, tenant, session_id, method, mode, rule, explanation, outcome,
    continuity, continuity_verified, joined, attempts, error, request_id, request_hash, inputs,
    create_time, finish_time, project_id, replay_count)
SELECT {_time_id("at", "n * 4 + g", "0")}, 'default', lpad(to_hex(n), 32, '0')::uuid, method,
    'CONTINUE', 'SEEN_LATELY', 'it was seen running within the window', outcome, 4, true,
    g = 2 AND mod(n, 100) = 7,
    CASE outcome WHEN 'CREATED' THEN '[["CREATE","SUCCEEDED","CREATED",900]]'::jsonb
        WHEN 'RESUMED' THEN '[["RESUME","SUCCEEDED","BOOT_ID_EQUAL",80]]'
        WHEN 'RESTARTED' THEN '[["RESUME","DEGRADED","BOOT_ID_CHANGED",400]]'
        WHEN 'RESTORED' THEN '[["RESTORE","SUCCEEDED","RESTORED",1400]]' ELSE '[]' END,
    CASE WHEN outcome IS NULL AND method = 'StartSession'
        THEN '{{"reason": "PROVIDER_CAPACITY", "message": "x", "metadata": {{}}}}'::jsonb END,
    md5(n::text || 'request' || g)::uuid, decode(repeat('00', 32), 'hex'), '{{}}', at,
    at + CASE outcome WHEN 'REUSED' THEN interval '0'
        ELSE exp({dice("n * 2 + g", 9)} * 4) * interval '50 ms' END,
    project_id, CASE WHEN mod(n, 200) = 9 THEN 1 ELSE 0 END
FROM (
    SELECT *, {_OUTCOME} AS outcome FROM (
        SELECT n, g, project_id, create_time + interval '1 minute' * (g - 1) AS at,
            CASE WHEN g = 2 AND mod(n, 50) = 0 THEN 'EndSession' ELSE 'StartSession' END AS method
        FROM (SELECT {NUMBER} AS n, project_id, create_time FROM sessions) s,
            generate_series(1, 2) AS g
    ) made
) told
ORDER BY at
"""
_ENDS = """
INSERT INTO session_ends (session_id, tenant, project_id, end_time, lifetime, reason)
SELECT session_id, tenant, project_id, end_time, end_time - create_time, 'REQUESTED'
FROM sessions WHERE state = 'ENDED' ORDER BY end_time
"""
_CHECKPOINT = """
INSERT INTO checkpoints (checkpoint_id, tenant, project_id, user_id, slot, number, session_id,
    generation, parent_id, kind, state, reason, app, spec, fingerprint, size_bytes, stored_bytes,
    sha256, place, create_time, ready_time, lease_until)
"""


def _checkpoints(which: str, numbers: str, state: str = "READY", parent: str = "NULL") -> str:
    ready = "create_time + g * interval '1 minute'" if state == "READY" else "NULL"
    lease = "now() + interval '1 year'" if state == "WRITING" else "NULL"
    return f"""{_CHECKPOINT}
    SELECT ('c' || lpad(to_hex({NUMBER} * 4096 + g), 31, '0'))::uuid, tenant, project_id, user_id,
        slot, g, session_id, 1, {parent}, 'APPLICATION', '{state}', 'STOP', 'roost-local', spec,
        fingerprint, 1000, 800, decode(repeat('00', 32), 'hex'), 'DATABASE',
        create_time + g * interval '1 minute', {ready}, {lease}
    FROM sessions, {numbers} AS g WHERE {which}
    """


_PARENT = f"CASE WHEN g = 2 THEN ('c' || lpad(to_hex({NUMBER} * 4096 + 1), 31, '0'))::uuid END"
_LAST = "session_id = lpad(to_hex(%(count)s), 32, '0')::uuid"
_NUMBERS = """
INSERT INTO checkpoint_numbers (tenant, project_id, user_id, slot, last_number)
SELECT tenant, project_id, user_id, slot, max(number) FROM checkpoints GROUP BY 1, 2, 3, 4
"""
_CHUNKS = """
INSERT INTO checkpoint_chunks (checkpoint_id, number, bytes)
SELECT checkpoint_id, 0, decode(repeat('00', 800), 'hex') FROM checkpoints
WHERE state = 'READY' AND mod(('x' || right(checkpoint_id::text, 8))::bit(32)::bigint, 10) = 2
"""
_CHOICES = f"""
INSERT INTO choices (decision_id, tenant, project_id, user_id, slot, session_id, choice, offered,
    asked, create_time)
SELECT {_time_id("create_time", NUMBER, "1")}, tenant, project_id, user_id, slot, session_id,
    CASE WHEN mod({NUMBER}, 3) = 0 THEN 'FRESH' ELSE 'CONTINUE' END, '[]', mod({NUMBER}, 2) = 0,
    create_time
FROM sessions WHERE mod({NUMBER}, 20) = 0 ORDER BY create_time
"""
_TOKENS = f"""
INSERT INTO choice_tokens (token_hash, tenant, project_id, user_id, slot, choice, session_id,
    start_count, expected_continuity, offered, expire_time)
SELECT sha256(({NUMBER})::text::bytea), tenant, project_id, user_id, slot, 'CONTINUE', session_id,
    3, 4, '[]', now() + {dice(NUMBER, 10)} * interval '6 hours'
FROM sessions WHERE {NUMBER} > %(count)s * 0.99
"""
_POLICIES = """
INSERT INTO policies (tenant, project_id, version, setting)
SELECT 'default', 'planned-' || n, 1, '{}' FROM generate_series(1, greatest(10, %(count)s / 10)) n
"""
_PREFERENCES = """
INSERT INTO user_preferences (tenant, project_id, user_id, preference)
SELECT 'default', 'planned-' || mod(n, 1000), 'u' || n, 'ASK'
FROM generate_series(1, %(count)s / 10) AS n
"""
_TIERS = """
INSERT INTO tiers (tenant, tier) SELECT 'tenant-' || n, 'paid' FROM generate_series(1, 100) AS n
"""
_VOLUMES = f"""
INSERT INTO volumes (app, name, session_id, generation, checkpoint_id, volume_id, create_time,
    due_at)
SELECT 'roost-local', 'roost_' || {NUMBER}, session_id, 2, gen_random_uuid(), 'vol_' || {NUMBER},
    create_time, now() + interval '1 day'
FROM sessions WHERE mod({NUMBER}, 200) = 0
"""
_ORPHANS = """
INSERT INTO orphans (app, container_id, pass_number)
SELECT 'roost-local', 'orphan' || n, 1 FROM generate_series(1, 20) AS n
"""
_SWEEPS = "INSERT INTO sweeps (app, due_at) VALUES ('roost-local', now() + interval '1 day')"
_VACUUM = """VACUUM ANALYZE sessions, containers, decisions, session_events, session_ends,
    checkpoints, checkpoint_numbers, checkpoint_chunks, choices, choice_tokens, policies,
    user_preferences, tiers, volumes, orphans, sweeps, live_session_counts"""

STEPS = (
    Step("sessions", _SESSIONS, rebuilt="sessions", unchecked=True),
    Step("live_session_counts", _LIVE_COUNTS),
    Step("containers", _CONTAINERS, rebuilt="containers", unchecked=True),
    Step("session_events", _EVENTS, rebuilt="session_events", unchecked=True),
    Step("decisions", _DECISIONS, rebuilt="decisions"),
    Step("session_ends", _ENDS, rebuilt="session_ends", unchecked=True),
    Step(
        "checkpoints",
        _checkpoints("state IN ('ACTIVE', 'PAUSED')", "generate_series(1, 2)", parent=_PARENT),
    ),
    Step("checkpoints of one key", _checkpoints(_LAST, "generate_series(3, 1000)")),
    Step(
        "checkpoints that failed",
        _checkpoints(f"{NUMBER} BETWEEN 21 AND 30", "generate_series(90, 90)", "FAILED"),
    ),
    Step(
        "checkpoint in the making",
        _checkpoints(f"{NUMBER} = %(count)s - 5", "generate_series(3, 3)", "WRITING"),
    ),
    Step("checkpoint_numbers", _NUMBERS),
    Step("checkpoint_chunks", _CHUNKS, unchecked=True),
    Step("choices", _CHOICES),
    Step("choice_tokens", _TOKENS),
    Step("policies", _POLICIES),
    Step("user_preferences", _PREFERENCES),
    Step("tiers", _TIERS),
    Step("volumes", _VOLUMES),
    Step("orphans", _ORPHANS),
    Step("sweeps", _SWEEPS),
    Step("vacuum of sessions", _VACUUM),
)
