"""Every metric that Driftline exports, declared once.

Prefix `driftline_`, base units, counters end in `_total`. Labels are arm, policy, partition, topic, reason, part:
never a device or an item, whose number is not bounded.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from streams.bulk_histogram import BulkHistogram

_STEP_SECONDS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1)
_IO_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_FRESHNESS_SECONDS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30)
_UNIT = tuple(round(0.05 * i, 2) for i in range(1, 21))
_COUNTS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class DeadLetterMetrics:
    """Records that could not be used."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.dead_letters = Counter(
            "driftline_dead_letters_total",
            "Records sent to a dead-letter topic.",
            ("topic", "reason"),
            registry=registry,
        )


class DeviceMetrics(DeadLetterMetrics):
    """What a device worker exports."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self.interactions = Counter(
            "driftline_interactions_total", "Interactions applied.", ("partition",), registry=registry
        )
        self.backfilled = Counter(
            "driftline_backfilled_total",
            "Interactions applied without being served.",
            ("partition",),
            registry=registry,
        )
        self.duplicates = Counter(
            "driftline_duplicate_events_total",
            "Interactions dropped because their event id was seen.",
            registry=registry,
        )
        self.out_of_order = Counter(
            "driftline_out_of_order_events_total",
            "Interactions older than the device's last one.",
            registry=registry,
        )
        self.recommendations = Counter(
            "driftline_recommendations_total", "Lists served.", ("arm", "policy"), registry=registry
        )
        self.refresh_requests = Counter(
            "driftline_refresh_requests_total",
            "Refreshes asked for.",
            ("arm", "policy", "reason"),
            registry=registry,
        )
        self.embeddings_applied = Counter(
            "driftline_embeddings_applied_total", "Embeddings taken into use.", ("arm",), registry=registry
        )
        self.embeddings_ignored = Counter(
            "driftline_embeddings_ignored_total",
            "Embeddings not taken into use.",
            ("arm", "reason"),
            registry=registry,
        )
        self.staleness = BulkHistogram(
            "driftline_staleness_ratio",
            "Staleness of the embedding served with.",
            ("arm",),
            buckets=_UNIT,
            registry=registry,
        )
        self.gap = BulkHistogram(
            "driftline_gap_interactions",
            "Interactions since the as_of of the embedding served with.",
            ("arm",),
            buckets=_COUNTS,
            registry=registry,
        )
        self.freshness = BulkHistogram(
            "driftline_freshness_seconds",
            "Wall time from a refresh request to the use of its embedding.",
            ("arm",),
            buckets=_FRESHNESS_SECONDS,
            registry=registry,
        )
        self.ndcg = Counter(
            "driftline_ndcg_at_10_sum_total", "Sum of NDCG@10 over lists served.", ("arm",), registry=registry
        )
        self.step_seconds = BulkHistogram(
            "driftline_step_seconds",
            "Compute time of the device step for each interaction.",
            (),
            buckets=_STEP_SECONDS,
            registry=registry,
        )
        self.checkpoint_seconds = Histogram(
            "driftline_checkpoint_seconds",
            "Duration of a checkpoint.",
            buckets=_IO_SECONDS,
            registry=registry,
        )
        self.checkpoint_records = Counter(
            "driftline_checkpoint_records_total",
            "Device records written to the changelog.",
            registry=registry,
        )
        self.store_failures = Counter(
            "driftline_store_failures_total",
            "Checkpoints that the local store did not take (the changelog has them).",
            registry=registry,
        )
        self.restored_records = Counter(
            "driftline_restored_records_total",
            "Changelog records read to restore a partition.",
            registry=registry,
        )
        self.restore_seconds = Histogram(
            "driftline_restore_seconds",
            "Duration of a partition's restore.",
            buckets=_IO_SECONDS,
            registry=registry,
        )
        self.trends_taken = Counter(
            "driftline_trends_taken_total", "Tables of trends.v1 that were read whole.", registry=registry
        )
        self.trends_ignored = Counter(
            "driftline_trends_ignored_records_total",
            "Records of trends.v1 that could not be used.",
            ("reason",),
            registry=registry,
        )
        self.trends_as_of = Gauge(
            "driftline_trends_as_of_timestamp_seconds",
            "Event time of the newest table of trends.v1 that was served with.",
            registry=registry,
        )
        self.partitions_owned = Gauge("driftline_partitions_owned", "Partitions this worker owns.", registry=registry)


class CloudMetrics(DeadLetterMetrics):
    """What a cloud worker exports."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self.requests = Counter("driftline_cloud_requests_total", "Refresh requests read.", registry=registry)
        self.expired = Counter(
            "driftline_cloud_expired_requests_total",
            "Refresh requests dropped past their deadline.",
            registry=registry,
        )
        self.coalesced = Counter(
            "driftline_cloud_coalesced_requests_total",
            "Refresh requests answered by another's work or replaced by a newer one.",
            ("reason",),
            registry=registry,
        )
        self.embeddings = Counter("driftline_cloud_embeddings_total", "Embeddings published.", registry=registry)
        self.texts_encoded = Counter("driftline_cloud_encoded_texts_total", "Texts encoded.", registry=registry)
        self.tokens_encoded = Counter("driftline_cloud_encoded_tokens_total", "Tokens encoded.", registry=registry)
        self.cache_hits = Counter("driftline_cloud_cache_hits_total", "Texts found in the cache.", registry=registry)
        self.encode_seconds = Histogram(
            "driftline_cloud_encode_seconds",
            "Duration of one encoder call.",
            buckets=_IO_SECONDS,
            registry=registry,
        )
        self.batch_requests = Histogram(
            "driftline_cloud_batch_requests",
            "Refresh requests in a batch.",
            buckets=_COUNTS,
            registry=registry,
        )
        self.part_seconds = Histogram(
            "driftline_cloud_part_seconds",
            "Time a batch spent in a part of the user model: encode, sequence, live, fit.",
            ("part",),
            buckets=_IO_SECONDS,
            registry=registry,
        )
        self.live_events = Counter(
            "driftline_cloud_live_events_total", "Interactions taken into the live index.", registry=registry
        )
        self.live_skipped = Counter(
            "driftline_cloud_live_skipped_events_total",
            "Interactions left out of the live index.",
            ("reason",),
            registry=registry,
        )
        self.live_users = Gauge("driftline_cloud_live_users", "Users that the live index knows.", registry=registry)
        self.live_items = Gauge(
            "driftline_cloud_live_items", "Items that somebody in the live index took.", registry=registry
        )
        self.live_lag_seconds = Gauge(
            "driftline_cloud_live_lag_seconds",
            "Time since the live index had read all interactions that there were.",
            registry=registry,
        )
        self.live_checkpoint_failures = Counter(
            "driftline_cloud_live_checkpoint_failures_total",
            "Checkpoints of the live index that could not be written.",
            registry=registry,
        )
        self.trends_published = Counter(
            "driftline_cloud_trends_published_total", "Tables of trends.v1 published.", registry=registry
        )
        self.trends_bytes = Counter(
            "driftline_cloud_trends_published_bytes_total", "Bytes of these tables.", registry=registry
        )
        self.trends_failures = Counter(
            "driftline_cloud_trends_failures_total", "Tables that could not be published.", registry=registry
        )
        self.trends_seconds = Histogram(
            "driftline_cloud_trends_seconds",
            "Time to make and publish a table.",
            buckets=_IO_SECONDS,
            registry=registry,
        )


class ReplayMetrics:
    """What a replay exports."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.replayed = Counter("driftline_replayed_events_total", "Events acknowledged by Kafka.", registry=registry)
        self.paused_seconds = Counter(
            "driftline_replay_paused_seconds_total",
            "Time spent waiting for the consumers.",
            registry=registry,
        )


class SupervisorMetrics:
    """What the local launcher exports."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.restarts = Counter(
            "driftline_process_restarts_total",
            "Processes started again.",
            ("process", "reason"),
            registry=registry,
        )
