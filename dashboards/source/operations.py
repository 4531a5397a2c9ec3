"""Operations: where time, bytes and memory go, and what runs out."""

from grafana_foundation_sdk.models import dashboard as models

from dashboards.source.panels import (
    AMBER,
    BLUE,
    PHASES,
    RED,
    Look,
    Panel,
    Query,
    bars,
    frame,
    single_value,
    time_series,
    timeline,
)

STUDY = '{study="$study"}'
OURS = '{job=~"consilium-server|consilium-site"}'


def build() -> models.Dashboard:
    """Return the dashboard."""
    return frame(
        "operations",
        "Consilium: Operations",
        "Where do time, bytes and memory go, and what runs out?",
        {
            "What runs out?": [_certificate(), _site_certificates(), _checkpoint(), _disks(), _exporters()],
            "Where does the time of a round go?": [_half(), _most(), _split()],
            "What goes over the wire?": [_sum_of_bytes(), _bytes(), _bytes_of_sites(), _uploads()],
            "The processes": [_memory(), _processor(), _files(), _gpu()],
        },
    )


def _certificate() -> Panel:
    look = Look(
        "How long is the certificate valid?",
        "Time until the server's certificate ends; then no site can connect. An alert fires below 30 days.",
        "s",
        (4, 6),
        steps=((None, RED), (3 * 86400, AMBER), (30 * 86400, BLUE)),
    )
    return single_value(look, Query("min(consilium_certificate_expiry_timestamp_seconds) - time()"))


def _site_certificates() -> Panel:
    look = Look(
        "How long are the sites' certificates valid?",
        "Time until each approved site's certificate ends; a connected site gets a new one 30 days before. An alert "
        "fires below 14 days.",
        "s",
        (5, 6),
        bounds=(0, None),
        decimals=0,
        steps=((None, RED), (14 * 86400, AMBER), (28 * 86400, BLUE)),
        empty="no site",
    )
    ends = "min by (site) (consilium_site_certificate_expiry_timestamp_seconds)"
    return bars(look, Query(f"{ends} - time()", "{{site}}"))


def _checkpoint() -> Panel:
    look = Look(
        "How old is the last checkpoint?",
        "What a crash would lose while the study trains; an alert fires after 30 minutes of training without one.",
        "s",
        (4, 6),
        steps=((None, BLUE), (900, AMBER), (1800, RED)),
        empty="none yet",
    )
    return single_value(look, Query(f"time() - max(consilium_checkpoint_timestamp_seconds{STUDY})"))


def _disks() -> Panel:
    look = Look(
        "How much disk is free?",
        "Free share of the file systems where server and sites write; an alert fires below 10 %.",
        "percentunit",
        (5, 6),
        bounds=(0, 1),
        decimals=0,
        steps=((None, RED), (0.1, AMBER), (0.2, BLUE)),
    )
    return bars(look, Query("min by (instance) (instance:consilium_disk_free_bytes:ratio)", "{{instance}}"))


def _exporters() -> Panel:
    look = Look(
        "Whose metrics could be read?",
        "Whether Prometheus reached each exporter. While the server's is away, no other alert can be trusted.",
        "none",
        (6, 6),
        steps=((None, RED), (1, BLUE)),
    )
    values = {"0": ("away", RED), "1": ("read", BLUE)}
    return timeline(look, Query(f"max by (instance) (up{OURS})", "{{instance}}"), values=values)


def _quantile(quantile: float) -> list[Query]:
    """One query per phase: in the order of the round, which one query for all would not keep."""
    return [
        Query(
            f"histogram_quantile({quantile}, sum by (le) "
            f'(consilium_round_seconds_bucket{{study="$study", phase="{phase}"}}))',
            phase,
        )
        for phase in PHASES
    ]


def _half() -> Panel:
    look = Look(
        "How long does a round take?",
        "Half of the study's rounds were faster (p50), by phase: waiting for sites, transfer, aggregation, total. "
        "Estimated from a histogram.",
        "s",
        (6, 9),
        bounds=(0, None),
    )
    return bars(look, *_quantile(0.5))


def _most() -> Panel:
    look = Look(
        "How long does a slow round take?",
        "95 % of the study's rounds were faster (p95), by phase. Estimated from a histogram.",
        "s",
        (6, 9),
        bounds=(0, None),
    )
    return bars(look, *_quantile(0.95))


def _split() -> Panel:
    look = Look(
        "Which phase takes the time?",
        "Mean seconds per round by phase, of the rounds that ended in each interval; stacked they are the round.",
        "s",
        (12, 9),
        bounds=(0, None),
        names=PHASES,
    )
    chosen = '{study="$study", phase!="total"}'
    spent = f"sum by (phase) (rate(consilium_round_seconds_sum{chosen}[$__rate_interval]))"
    rounds = f"sum by (phase) (rate(consilium_round_seconds_count{chosen}[$__rate_interval])) > 0"
    return time_series(look, Query(f"{spent} / ({rounds})", "{{phase}}"), stacked=True)


def _sum_of_bytes() -> Panel:
    look = Look(
        "How much was transferred?",
        "Bytes of plans and payloads in all runs of the study: up from the sites, down to them; and the codec.",
        "bytes",
        (6, 8),
        bounds=(0, None),
        decimals=1,
    )
    total = f"sum by (direction, codec) (consilium_transfer_bytes_total{STUDY})"
    return bars(look, Query(total, "{{direction}} ({{codec}})"))


def _bytes() -> Panel:
    look = Look(
        "How fast do bytes flow at the server?",
        "Bytes per second by direction, counted as rounds end: up from the sites, down to them.",
        "Bps",
        (6, 8),
        bounds=(0, None),
        names=("up", "down"),
    )
    rate = f"sum by (direction) (rate(consilium_transfer_bytes_total{STUDY}[$__rate_interval]))"
    return time_series(look, Query(rate, "{{direction}}"))


def _bytes_of_sites() -> Panel:
    look = Look(
        "Which site sends and receives how fast?",
        "Payload bytes per second, told by the sites.",
        "Bps",
        (6, 8),
        bounds=(0, None),
    )
    rate = f"sum by (site, direction) (rate(consilium_node_transfer_bytes_total{STUDY}[$__rate_interval]))"
    return time_series(look, Query(rate, "{{site}} {{direction}}"))


def _uploads() -> Panel:
    look = Look(
        "Do sites wait for their turn to send?",
        "Large payloads on their way from sites, and those that wait for a turn; the server takes a few at a time. "
        "An alert fires if some wait for ten minutes.",
        "none",
        (6, 8),
        bounds=(0, None),
        decimals=0,
    )
    return time_series(look, Query("max by (state) (consilium_uploads)", "{{state}}"))


def _memory() -> Panel:
    look = Look(
        "How much memory do the processes hold?",
        "Resident memory of the long-lived processes; a line that only rises is a leak.",
        "bytes",
        (12, 9),
        bounds=(0, None),
    )
    return time_series(look, Query(f"max by (instance) (process_resident_memory_bytes{OURS})", "{{instance}}"))


def _processor() -> Panel:
    look = Look(
        "How busy are the processors?",
        "Processor time per second of the long-lived processes; 100 % is one core.",
        "percentunit",
        (12, 9),
        bounds=(0, None),
    )
    rate = f"sum by (instance) (rate(process_cpu_seconds_total{OURS}[$__rate_interval]))"
    return time_series(look, Query(rate, "{{instance}}"))


def _files() -> Panel:
    look = Look(
        "How many files and connections are open?",
        "Open file descriptors of the long-lived processes as a share of what each may open.",
        "percentunit",
        (12, 9),
        bounds=(0, 1),
        decimals=2,
        steps=((None, BLUE), (0.8, RED)),
    )
    share = f"max by (instance) (process_open_fds{OURS} / process_max_fds{OURS})"
    return time_series(look, Query(share, "{{instance}}"))


def _gpu() -> Panel:
    look = Look(
        "How much GPU memory do the sites use?",
        "GPU memory in use, where a site has a GPU; the panel is empty where none has.",
        "bytes",
        (12, 9),
        bounds=(0, None),
        empty="no GPU",
    )
    return time_series(look, Query("max by (site, gpu) (consilium_node_gpu_memory_bytes)", "{{site}} {{gpu}}"))
