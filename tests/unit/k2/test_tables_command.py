"""`k2 tables` as its user sees it: what it prints, what it refuses, and its exit codes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from common.errors import Interrupted
from common.iceberg import open_catalog
from common.settings import LakeSettings
from k2 import tables as tables_module
from k2.runner import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_REFUSED, EXIT_WRONG_USE, exit_code
from k2.tables import tables
from sink.maintenance.jobs import MaintainedTable, Progress
from sink.table import IcebergTable
from tests.support.upkeep import files_of, filled, trade_ids, trades


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LakeSettings:
    for name in [name for name in os.environ if name.startswith("K2_")]:
        monkeypatch.delenv(name)
    return LakeSettings.load(data_dir=tmp_path / "lake")


@pytest.fixture
def table(lake: LakeSettings) -> IcebergTable:
    return filled(lake, 4)


def run(lake: LakeSettings, *arguments: str) -> Result:
    return CliRunner().invoke(tables, [*arguments, "--data-dir", str(lake.data_dir)])


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def snapshot_ids(lake: LakeSettings) -> list[int]:
    return [snapshot.snapshot_id for snapshot in trades(lake).iceberg_table.metadata.snapshots]


def test_all_tables_are_listed(lake: LakeSettings, table: IcebergTable) -> None:
    open_catalog(lake).create_namespace("research")
    open_catalog(lake).create_table("research.mine", table.iceberg_table.schema())
    done = run(lake, "list", "--json")
    assert done.exit_code == 0
    assert [(line["table"], line["rows"], line["snapshots"]) for line in lines(done)] == [
        ("market.trades", 12, 4),
        ("research.mine", 0, 0),
    ]
    assert "market.trades     12" in run(lake, "list").stdout


@pytest.mark.parametrize("name", ["trades", "market.trades"])
def test_a_table_may_be_named_without_the_markets_namespace(lake: LakeSettings, table: IcebergTable, name: str) -> None:
    assert run(lake, "stats", name).stdout.startswith("market.trades: 12 rows in 4 files")


def test_the_history_has_the_cut_of_each_commit(lake: LakeSettings, table: IcebergTable) -> None:
    run(lake, "expire", "--keep", "1", "--older-than", "0s")
    found = lines(run(lake, "history", "trades", "--json", "--limit", "3"))
    assert [line["total_rows"] for line in found] == [6, 9, 12]
    assert [line["is_kept"] for line in found] == [False, False, True]
    assert json.loads(found[0]["cut"])["market.trades"]["next"] == {"cluster": {"topic-id-1": {"0": 6}}}


def test_what_a_job_would_do_is_said_and_not_done(lake: LakeSettings, table: IcebergTable) -> None:
    before = files_of(lake)
    target = snapshot_ids(lake)[0]
    for job in (
        ["expire", "--keep", "1", "--older-than", "0s"],
        ["orphans", "--delete", "--older-than", "0s"],
        ["tag", "audit"],
        ["rollback", "trades", "--to-snapshot", str(target), "--force"],
    ):
        done = run(lake, *job, "--dry-run")
        assert done.exit_code == 0
        assert done.stdout.startswith("market.trades: dry run: ")
    assert files_of(lake) == before


def test_tag_expire_orphans_untag(lake: LakeSettings, table: IcebergTable) -> None:
    first = snapshot_ids(lake)[0]
    assert run(lake, "tag", "audit", "trades", "--snapshot", str(first)).exit_code == 0
    [expired] = lines(run(lake, "expire", "--keep", "1", "--older-than", "0s", "--json"))
    assert (expired["snapshots_expired"], expired["snapshots_kept"]) == (2, 2)
    [swept] = lines(run(lake, "orphans", "--older-than", "0s", "--delete", "--json"))
    assert (swept["files"], swept["files_deleted"]) == (2, 2)
    assert run(lake, "untag", "audit", "trades").exit_code == 0
    assert run(lake, "verify").exit_code == 0
    assert trade_ids(lake) == list(range(12))


def test_compacting_leaves_the_rows_and_orphans_takes_what_gave_way(lake: LakeSettings, table: IcebergTable) -> None:
    [listed] = lines(run(lake, "rewrite-manifests", "--json"))
    assert (listed["manifests_before"], listed["manifests_after"]) == (4, 1)
    [planned] = lines(run(lake, "compact", "--dry-run", "--json"))
    assert (planned["files_before"], planned["dry_run"]) == (4, True)
    [done] = lines(run(lake, "compact", "--json"))
    assert (done["files_before"], done["files_after"], done["rows"]) == (4, 1, 12)
    run(lake, "expire", "--keep", "1", "--older-than", "0s")
    run(lake, "orphans", "--older-than", "0s", "--delete")
    assert run(lake, "verify").exit_code == 0
    assert len([path for path in files_of(lake) if path.parent.name != "history" and path.suffix == ".parquet"]) == 1
    assert trade_ids(lake) == list(range(12))


def test_a_rollback_without_a_broker_is_refused_unless_it_is_forced(lake: LakeSettings, table: IcebergTable) -> None:
    target = str(snapshot_ids(lake)[1])
    refused = run(lake, "rollback", "trades", "--to-snapshot", target)
    assert refused.exit_code == EXIT_REFUSED
    assert refused.stdout == ""
    assert "K2_KAFKA_BOOTSTRAP_SERVERS is not set" in refused.stderr
    assert "would go back by 6 offsets of the log, and the broker cannot be asked" in refused.stderr
    done = run(lake, "rollback", "trades", "--to-snapshot", target, "--force", "--json")
    assert lines(done)[0]["rows"] == 6
    assert trade_ids(lake) == list(range(6))


def test_damage_is_an_exit_code_and_a_line_each(lake: LakeSettings, table: IcebergTable) -> None:
    path = sorted(path for path in files_of(lake) if path.suffix == ".parquet")[0]
    path.unlink()
    done = run(lake, "verify")
    assert done.exit_code == EXIT_FAILED
    assert f"    WRONG: the file file://{path} is missing\n" in done.stdout
    assert lines(run(lake, "verify", "--json"))[0]["findings_found"] == 2


def test_one_table_that_fails_does_not_keep_the_others_from_theirs(lake: LakeSettings, table: IcebergTable) -> None:
    open_catalog(lake).create_namespace("research")
    open_catalog(lake).create_table("research.mine", table.iceberg_table.schema())
    done = run(lake, "tag", "audit", "research.mine", "trades", "--json")
    assert done.exit_code == EXIT_FAILED
    said = lines(done)
    assert "has no snapshot yet" in said[0]["error"]
    assert said[1]["snapshot_id"] == table.snapshot_id
    refused = run(lake, "expire", "research.mine")
    assert refused.exit_code == EXIT_REFUSED
    assert "research.mine is no table of the market" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (
            ["verify", "nothing"],
            EXIT_REFUSED,
            "there is no table market.nothing in the catalog; there are market.trades",
        ),
        (["expire", "--older-than", "3"], EXIT_WRONG_USE, "'3' is no duration; write 90s, 15m, 24h or 7d"),
        (["rollback", "trades", "--to-time", "noon"], EXIT_WRONG_USE, "'noon' is no time"),
        (["rollback", "trades"], EXIT_WRONG_USE, "either --to-snapshot or --to-time"),
        (["verify", "--quick", "--deep"], EXIT_WRONG_USE, "exclude each other"),
        (["tag", "audit", "--snapshot", "1"], EXIT_WRONG_USE, "name that table"),
        (["history", "trades", "--limit", "0"], EXIT_WRONG_USE, "0 is not in the range"),
    ],
)
def test_wrong_use_is_one_sentence(
    lake: LakeSettings, table: IcebergTable, arguments: list[str], code: int, said: str
) -> None:
    done = run(lake, *arguments)
    code_seen = exit_code(done.exception) if done.exception and not isinstance(done.exception, SystemExit) else None
    assert (code_seen or done.exit_code) == code
    assert said in (done.stderr + str(done.exception))


def test_a_folder_without_tables_is_said_and_not_made(tmp_path: Path) -> None:
    done = CliRunner().invoke(tables, ["list", "--data-dir", str(tmp_path / "typo")])
    assert done.exception is not None
    assert "there are no tables in" in str(done.exception)
    assert exit_code(done.exception) == EXIT_WRONG_USE
    assert not (tmp_path / "typo").exists()


def test_ctrl_c_ends_a_job_between_two_steps(
    lake: LakeSettings, table: IcebergTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = []

    def job(table: MaintainedTable, *, progress: Progress, **_: Any) -> None:
        progress.step("do the first thing")
        signal.raise_signal(signal.SIGINT)
        passed.append("the first thing is done whole")
        progress.step("do the second thing")
        passed.append("the second thing")

    monkeypatch.setattr(tables_module, "verify", job)
    handler = signal.getsignal(signal.SIGINT)
    done = run(lake, "verify")
    assert isinstance(done.exception, Interrupted)
    assert str(done.exception) == (
        "stopped before the next step (do the second thing); nothing is half done, run it again to go on"
    )
    assert exit_code(done.exception) == EXIT_INTERRUPTED
    assert passed == ["the first thing is done whole"]
    assert signal.getsignal(signal.SIGINT) is handler
