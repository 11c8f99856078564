"""Settings: one frozen object per concern, read from `K2_...` environment variables, every bound checked at start.

Units are the last part of a name. A wrong value raises SettingsError with the variable's name, what it is, and what it
may be; nothing is read from the environment after start.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableVariable

from common.errors import SettingsError

S = TypeVar("S", bound="Settings")


class Settings(BaseSettings):
    """Base of every settings object: frozen, no unknown fields, errors as one sentence."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Settings from the environment; `overrides` that are not None win. Raises SettingsError."""
        try:
            return cls(**{name: value for name, value in overrides.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"]) or "settings"
            prefix = cls.model_config.get("env_prefix", "")
            raise SettingsError(
                f"the setting {prefix}{name.upper()} is wrong ({first.get('input')!r}): {first['msg']}; "
                "correct it and start again"
            ) from None
        except UnreadableVariable as error:  # a list or an object that is no JSON; it names the field
            raise SettingsError(
                f"a variable {cls.model_config.get('env_prefix', '')}... is no JSON ({error}); "
                "correct it and start again"
            ) from None


class KafkaSettings(Settings):
    """How to reach the log. Without bootstrap servers the command starts the embedded broker."""

    model_config = SettingsConfigDict(env_prefix="K2_KAFKA_", frozen=True, extra="forbid")

    bootstrap_servers: str | None = Field(None, description="host:port, comma separated; unset = embedded broker")
    schema_registry_url: str | None = Field(None, description="Confluent-compatible registry; unset = embedded")
    topic_partitions: int = Field(4, ge=1, le=1024, description="partitions of a topic that K2 creates")
    topic_replication: int = Field(1, ge=1, le=9, description="replicas of a topic that K2 creates")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: str | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_ca_file: Path | None = None
    request_timeout_ms: int = Field(10_000, ge=100, le=300_000)
    fetch_wait_ms_max: int = Field(10, ge=1, le=10_000, description="how long a broker may hold an empty fetch")

    def client_config(self) -> dict[str, Any]:
        """The configuration that every confluent-kafka client of K2 starts from. Raises SettingsError."""
        if not self.bootstrap_servers:
            raise SettingsError(
                "K2_KAFKA_BOOTSTRAP_SERVERS is not set; set it to host:port of a Kafka broker or start `k2 broker`"
            )
        config: dict[str, Any] = {
            "bootstrap.servers": self.bootstrap_servers,
            "security.protocol": self.security_protocol,
            "socket.nagle.disable": True,
            "log_level": 2,
        }
        if self.sasl_mechanism:
            config["sasl.mechanism"] = self.sasl_mechanism
        if self.sasl_username:
            config["sasl.username"] = self.sasl_username
        if self.sasl_password:
            config["sasl.password"] = self.sasl_password.get_secret_value()
        if self.ssl_ca_file:
            config["ssl.ca.location"] = str(self.ssl_ca_file)
        return config


class LakeSettings(Settings):
    """Where the Iceberg catalog and its files are. By default: SQLite and a folder under `data_dir`."""

    model_config = SettingsConfigDict(env_prefix="K2_LAKE_", frozen=True, extra="forbid")

    data_dir: Path = Field(Path(".k2"), description="K2's own folder: catalog, warehouse, ledger")
    catalog_uri: str | None = Field(None, description="PyIceberg SQL catalog; unset = SQLite in data_dir")
    warehouse: str | None = Field(None, description="file:// or s3:// location; unset = data_dir/warehouse")
    catalog_name: str = Field("k2", min_length=1)
    catalog_properties: dict[str, str] = Field(
        default_factory=dict, description="further PyIceberg catalog properties, as JSON"
    )

    symbol_buckets: int = Field(
        0,
        ge=0,
        le=1024,
        description="new tables are partitioned by so many buckets of the symbol too, beside the day; 0 = by day only",
    )

    @property
    def resolved_catalog_uri(self) -> str:
        return self.catalog_uri or f"sqlite:///{self.data_dir.resolve() / 'catalog.db'}"

    @property
    def resolved_warehouse(self) -> str:
        return self.warehouse or f"file://{self.data_dir.resolve() / 'warehouse'}"

    @property
    def is_object_store(self) -> bool:
        """Whether each read of a file is a request to a store that speaks S3."""
        return self.resolved_warehouse.startswith(("s3://", "s3a://"))

    def prepare(self) -> None:
        """Make `data_dir`. Raises SettingsError when it cannot be written."""
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.data_dir):
                pass
        except OSError as error:
            raise SettingsError(
                f"the data directory {self.data_dir} cannot be written ({error.strerror}); "
                "choose another with --data-dir or K2_LAKE_DATA_DIR"
            ) from None


class BackupSettings(Settings):
    """How `k2 backup` and `k2 restore` reach the place of the backups."""

    model_config = SettingsConfigDict(env_prefix="K2_BACKUP_", frozen=True, extra="forbid")

    store_properties: dict[str, str] = Field(
        default_factory=dict,
        description="PyIceberg file IO properties of that place, as JSON, over the lake's own: other keys",
    )
    threads: int = Field(4, ge=1, le=64, description="files that are copied at a time")


class IngestSettings(Settings):
    """The feed and the producer."""

    model_config = SettingsConfigDict(env_prefix="K2_INGEST_", frozen=True, extra="forbid")

    binance_url: str = Field(
        "wss://data-stream.binance.vision",
        description="hosts, comma separated: the next one when one fails",
    )
    binance_rest_url: str | None = Field(
        None, description="as binance_url, https://; unset = the one that belongs to binance_url"
    )
    coinbase_url: str = Field("wss://ws-feed.exchange.coinbase.com", description="as binance_url")
    rest_weight_per_minute_max: int = Field(
        4_800, ge=50, le=1_000_000, description="what K2 uses of the 6,000 that Binance allows an address"
    )
    connections: int = Field(2, ge=1, le=4, description="at a time for each stream; what comes twice is dropped")
    streams_per_connection_max: int = Field(1_024, ge=1, le=1_024, description="more streams go to further connections")
    open_timeout_s: float = Field(10.0, gt=0, le=120)
    stale_after_s: float = Field(120.0, gt=0, le=3600, description="no frame for this long = reconnect")
    stale_beside_twin_after_s: float = Field(
        10.0, gt=0, le=3600, description="the same when the stream's other connection brought frames meanwhile"
    )
    ping_interval_s: float = Field(20.0, ge=1, le=3600)
    ping_timeout_s: float = Field(30.0, gt=0, le=3600, description="a ping without its echo for this long = reconnect")
    backoff_s_first: float = Field(5.0, gt=0, le=60)
    backoff_s_max: float = Field(60.0, gt=0, le=3600)
    rotate_after_s: float = Field(4 * 3600.0, gt=0, le=23 * 3600)
    linger_ms: float = Field(
        5.0, ge=0, le=1000, description="how long the producer gathers a batch; many small ones cost a broker dearly"
    )
    transaction_ms: float = Field(
        10.0, ge=1, le=1000, description="how far apart transactions end: what is sent is readable after so long"
    )
    heartbeat_s: float = Field(1.0, gt=0, le=60, description="how often the ingest that writes says that it lives")
    standby_after_s: float = Field(
        4.0, gt=0, le=600, description="a standby takes over when it has heard nothing for so long"
    )
    shard: str = Field(
        "",
        pattern=r"^[a-z0-9_-]{0,40}$",
        description="ingests of one venue that are to run side by side, with different symbols, have different ones",
    )
    queue_messages_max: int = Field(
        100_000, ge=1000, le=10_000_000, description="unacknowledged messages before the socket waits"
    )
    delivery_timeout_ms: int = Field(
        120_000,
        ge=3000,
        le=3_600_000,
        description="a message not acknowledged for this long ends ingest with an error; and the transaction that an "
        "ingest leaves when it dies holds readers up for so long, unless one starts before",
    )
    checkpoint_interval_s: float = Field(10.0, gt=0, le=3600)
    gap_grace_s: float = Field(
        0.5, ge=0, le=60, description="trades that are missing for less long were late or out of order, and no gap"
    )
    gap_alert_ids_min: int = Field(10, ge=1, description="a gap of so many trades is an alert, a smaller one a warning")
    gap_alert_ids_max: int = Field(
        100, ge=1, description="while a larger gap is open, its symbol does not count as complete"
    )
    rest_timeout_s: float = Field(5.0, gt=0, le=120)
    clock_check_s: float = Field(60.0, ge=1, le=86_400, description="how often the exchange is asked for its time")
    clock_offset_recorded: bool = Field(
        True, description="each trade and quote keeps the clocks' offset, in ms, in vendor_data"
    )
    instruments_refresh_s: float = Field(3600.0, ge=10, le=7 * 86_400)
    shed: bool = Field(True, description="under load take less, trades last of all; false = only the socket waits")
    shed_queue_percent: tuple[float, float, float, float] = Field(
        (50, 70, 85, 95), description="how full the queue is when each level of load begins"
    )
    shed_memory_percent: tuple[float, float, float, float] = Field(
        (70, 80, 90, 95), description="the same of the memory that this process has, in percent of memory_bytes_max"
    )
    shed_after_s: float = Field(2.0, ge=0, le=3600, description="a load for less long is a burst, and changes nothing")
    shed_recover_after_s: float = Field(
        30.0, ge=0, le=3600, description="a level is left when the load was below what holds it for so long"
    )
    memory_bytes_max: int | None = Field(
        None, ge=1024 * 1024, description="what this process may have; unset = the container's limit, or the machine's"
    )
    priority_symbols: tuple[str, ...] = Field((), description="symbols whose quotes and depth are shed last")
    backfill: bool = Field(True, description="ask the venue's REST interface for trades that are missing")
    backfill_requests_max: int = Field(2, ge=1, le=64, description="gaps that are asked for at once")
    backfill_attempts_max: int = Field(
        4, ge=1, le=100, description="so often the venue may answer without the missing trades before they are lost"
    )
    backfill_ids_max: int = Field(
        1_000_000, ge=1, description="a larger gap is not asked for: 1,000 trades a request, 240 requests a minute"
    )


class SinkSettings(Settings):
    """When the sink commits: whichever of rows, bytes and age comes first; and what waits under load."""

    model_config = SettingsConfigDict(env_prefix="K2_SINK_", frozen=True, extra="forbid")

    commit_rows_max: int = Field(1_000_000, ge=1, le=50_000_000)
    commit_bytes_max: int = Field(
        256 * 1024 * 1024, ge=1024, le=8 * 1024**3, description="Avro bytes held before a commit"
    )
    commit_age_ms_max: int = Field(1_000, ge=10, le=3_600_000)
    poll_messages_max: int = Field(10_000, ge=1, le=100_000)
    snapshots_kept_min: int = Field(
        10, ge=1, le=10_000, description="and all of the last 10 s; older instants are read by their positions"
    )
    bars: bool = Field(True, description="keep market.bars_1s, bars_1m, bars_1h and bars_1d beside the trades")
    bars_interval_ms: int = Field(
        10_000,
        ge=100,
        le=3_600_000,
        description="how often they take in what the trades have; queries never wait for it",
    )
    group: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="sinks with the same one share the partitions; per dataset it is the consumer group "
        "GROUP-DATASET; unset = this sink takes all",
    )
    group_session_ms_max: int = Field(
        10_000,
        ge=1_000,
        le=300_000,
        description="a sink that is not heard of for this long loses its partitions to the others; brokers take no "
        "less than 6,000 unless told to",
    )
    load_levels: bool = Field(True, description="under load do less, trades last of all; what waits stays in the log")
    load_records_behind: tuple[int, int, int] = Field(
        (1_000_000, 5_000_000, 20_000_000),
        description="records of trades that wait in the log when bars, depth, quotes begin to wait for them",
    )
    load_memory_percent: tuple[float, float, float, float] = Field(
        (70, 80, 90, 95), description="of memory_bytes_max, when bars, depth, quotes and everything begin to wait"
    )
    load_after_s: float = Field(2.0, ge=0, le=3600, description="a load for less long is a burst, and changes nothing")
    load_recover_after_s: float = Field(
        30.0, ge=0, le=3600, description="a level is left when the load was below what holds it for so long"
    )
    memory_bytes_max: int | None = Field(
        None, ge=1024 * 1024, description="what this process may have; unset = the container's limit, or the machine's"
    )


class RetentionSettings(Settings):
    """How long rows stay. Unset: for ever; whole days are deleted, the day that runs is not counted."""

    model_config = SettingsConfigDict(env_prefix="K2_RETENTION_", frozen=True, extra="forbid")

    quotes_days: int | None = Field(None, ge=1, le=36_500, description="market.quotes, by the day of receive_time")
    trades_days: int | None = Field(None, ge=1, le=36_500, description="market.trades, by the day of event_time")


class MaintenanceSettings(Settings):
    """`k2 maintain`: how often each of its jobs runs on each table."""

    model_config = SettingsConfigDict(env_prefix="K2_MAINTENANCE_", frozen=True, extra="forbid")

    compact_interval_s: float = Field(60.0, gt=0, le=86_400, description="small files become few")
    manifests_interval_s: float = Field(600.0, gt=0, le=86_400, description="manifests become few")
    expire_interval_s: float = Field(60.0, gt=0, le=86_400, description="old snapshots go; the sink does this too")
    retention_interval_s: float = Field(3_600.0, gt=0, le=86_400, description="days past their retention go")
    orphans_interval_s: float = Field(21_600.0, gt=0, le=604_800, description="files that nothing refers to go")
    orphans_grace_h: float = Field(24.0, ge=1, le=8_760, description="how long such a file stays all the same")
    compact_target_bytes: int = Field(
        128 * 1024**2, ge=1024**2, le=4 * 1024**3, description="how large a data file becomes"
    )
    compact_rows_in_memory_max: int = Field(
        1_000_000, ge=10_000, le=100_000_000, description="rows that compaction holds at once; a trade takes 190 bytes"
    )


class FlightSettings(Settings):
    """The Flight SQL server and its engine."""

    model_config = SettingsConfigDict(env_prefix="K2_FLIGHT_", frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(50051, ge=0, le=65535, description="0 = any free port")
    memory_bytes_max: int = Field(4 * 1024**3, ge=64 * 1024**2, description="DuckDB's memory limit")
    threads: int | None = Field(None, ge=1, le=1024, description="DuckDB's threads; unset = one per core")
    batch_rows_max: int = Field(65_536, ge=1, le=1_000_000)
    batch_bytes_max: int = Field(
        3_670_016,
        ge=64 * 1024,
        le=15 * 1024**2,
        description="below gRPC's default message limit of 4 MiB, which npm's clients keep (ADBC's is 16)",
    )
    spill_dir: Path | None = Field(
        None, description="where large sorts and joins spill; unset = the folder spill in K2_LAKE_DATA_DIR"
    )
    spill_bytes_max: int = Field(32 * 1024**3, ge=1024**2, description="what they may spill, all together")
    result_cache_bytes_max: int = Field(
        64 * 1024**2, ge=0, description="small results kept for the same statement at the same cut; 0 = none"
    )
    result_bytes_max: int | None = Field(
        None, ge=1024, description="Arrow bytes of one result; a larger one is refused there; unset = any size"
    )
    sessions_max: int = Field(1_024, ge=1, le=100_000)
    session_idle_s_max: float = Field(1800.0, gt=0)
    transaction_idle_s_max: float = Field(300.0, gt=0, description="an idle transaction is rolled back after this")
    prepared_statements_max: int = Field(10_000, ge=1, le=1_000_000)
    statement_timeout_s: float = Field(300.0, gt=0, le=86_400)
    statements_max: int = Field(64, ge=1, le=10_000, description="statements that run at once; others wait their turn")
    statement_wait_s_max: float = Field(
        10.0, ge=0, le=3600, description="how long a statement waits for its turn before it is refused"
    )
    pending_statements_max: int = Field(
        1_024, ge=1, le=100_000, description="statements announced and not yet read whose cut is pinned"
    )
    endpoints_max: int | None = Field(
        None,
        ge=1,
        le=64,
        description="parts that the result of a scan of a large table comes in, for clients that read them at once; "
        "unset = one for two cores",
    )
    pin_s_max: float = Field(60.0, gt=0, le=3600, description="how long such a cut stays pinned")
    ticket_s_max: float = Field(
        600.0, gt=0, le=86_400, description="how long a ticket is good for, if it is not renewed"
    )
    ticket_key: SecretStr | None = Field(
        None, description="what tickets are sealed with; the same on replicas; unset = made at each start"
    )
    subscriptions_max: int = Field(64, ge=0, le=10_000, description="SUBSCRIBE: how many run at once; more are refused")
    subscription_interval_ms_min: float = Field(
        20.0, ge=1, le=100, description="SUBSCRIBE: the least time between two batches of one that is up to date"
    )
    subscription_keep_alive_s: float = Field(
        5.0, gt=0, le=240, description="SUBSCRIBE: an empty batch after so long without rows; proxies cut idle streams"
    )
    subscription_stall_s_max: float = Field(
        60.0, gt=0, le=86_400, description="SUBSCRIBE: one whose reader leaves a batch lying for longer is ended"
    )
    subscription_rows_behind_max: int = Field(
        10_000_000, ge=1, description="SUBSCRIBE: one that was up to date and falls further behind is ended"
    )
    snapshot_refresh_ms: int = Field(
        500, ge=10, le=60_000, description="how often the catalog is asked for a newer snapshot"
    )
    topic_refresh_ms: int = Field(2_000, ge=10, le=600_000, description="how often the broker is asked for new topics")
    as_of_wait_ms: int = Field(
        2_000, ge=0, le=60_000, description="an instant that this server has not come to yet is waited for so long"
    )
    tail_publish_ms: int = Field(
        15,
        ge=1,
        le=1000,
        description="how far apart publications of arriving rows are; after a silence there is no wait",
    )
    hot_window_bytes: int = Field(
        256 * 1024**2, ge=0, description="rows that were committed stay in memory too, up to this many bytes; 0: none"
    )
    tail_rows_max: int = Field(
        20_000_000, ge=1_000, description="rows kept in memory beyond the snapshot; at this bound the tail waits"
    )
    drain_s_max: float = Field(3.0, ge=0, le=300)
    tls_cert_file: Path | None = Field(None, description="PEM certificate chain; set = TLS")
    tls_key_file: Path | None = Field(None, description="PEM key of the certificate")
    tls_client_ca_file: Path | None = Field(
        None, description="PEM; set = every client needs a certificate of these authorities"
    )
    health_host: str = "127.0.0.1"
    health_port: int | None = Field(None, ge=0, le=65535, description="grpc.health.v1; unset = none, 0 = any free port")


class AccessSettings(Settings):
    """Who may come in. Without any of it: everybody, and only on an address that this machine alone can reach."""

    model_config = SettingsConfigDict(env_prefix="K2_ACCESS_", frozen=True, extra="forbid")

    file: Path | None = Field(None, description="TOML file of users, API keys and admins")
    user: str = Field("k2", min_length=1, max_length=128, description="who K2_ACCESS_PASSWORD is of: an admin")
    password: SecretStr | None = Field(None, description="for a server with one user, without a file")
    anonymous: Literal["auto", "on", "off"] = Field(
        "auto", description="auto = on where nothing else is set; only ever on loopback"
    )
    token_idle_s_max: float = Field(8 * 3600.0, gt=0, description="a login's token ends when unused for this long")
    token_life_s_max: float = Field(7 * 86_400.0, gt=0, description="and after this long in any case")
    tokens_max: int = Field(10_000, ge=1, le=1_000_000, description="beyond it the token used longest ago ends")
    failures_free: int = Field(5, ge=1, le=1_000, description="failed logins of a name before it must wait")
    lock_s_max: float = Field(300.0, gt=0, le=86_400, description="the longest wait; it starts at 1 s and doubles")
    jwt_secret: SecretStr | None = Field(None, description="HS256, HS384, HS512: at least 32, 48, 64 bytes")
    jwt_public_key_file: Path | None = Field(None, description="PEM key or certificate: RS, PS, ES, EdDSA")
    jwt_jwks_url: str | None = Field(None, description="https:// key server: RS, PS, ES, EdDSA")
    jwt_jwks_timeout_s: float = Field(5.0, gt=0, le=60)
    jwt_issuer: str | None = Field(None, description="what the claim iss must be; unset = anything")
    jwt_audience: str | None = Field(None, description="what the claim aud must hold; needed with any JWT key")
    jwt_leeway_s: float = Field(30.0, ge=0, le=600, description="how far clocks may be apart")
    jwt_name_claim: str = Field("sub", min_length=1, description="the claim that names the principal")
    jwt_admin_claim: str | None = Field(None, description="the claim that makes an admin; unset = none")
    jwt_admin_value: str = Field("k2-admin", min_length=1, description="what that claim is or holds; true does as well")


class TelemetrySettings(Settings):
    """Logs and metrics."""

    model_config = SettingsConfigDict(env_prefix="K2_TELEMETRY_", frozen=True, extra="forbid")

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto = console on a terminal, else json"
    )
    metrics_port: int | None = Field(None, ge=0, le=65535, description="Prometheus endpoint; unset = none")
    metrics_host: str = "127.0.0.1"


ALL_SETTINGS: tuple[type[Settings], ...] = (
    KafkaSettings,
    LakeSettings,
    BackupSettings,
    IngestSettings,
    SinkSettings,
    RetentionSettings,
    MaintenanceSettings,
    FlightSettings,
    AccessSettings,
    TelemetrySettings,
)
