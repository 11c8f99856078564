# The commands of the project; `just` alone lists them. Nothing here needs more than uv, Python, and where it says so Java or Docker.

_default:
    @just --list --unsorted

# make the environment
setup:
    uv sync

# format, and repair what the linter can repair
fmt:
    uv run ruff format
    uv run ruff check --fix

lint:
    uv run ruff check
    uv run ruff format --check

types:
    uv run mypy

# the arrows between the rooms
imports:
    uv run lint-imports

test *ARGS:
    uv run pytest {{ ARGS }}

# on a real Apache Kafka: needs Java 17 and Maven, and skips with a reason without them
integration *ARGS:
    uv run pytest tests/integration {{ ARGS }}

# thousands of seeded schedules of everything that may happen, each answer checked: `just simulate --schedules 10000`
simulate *ARGS:
    uv run python -m tests.simulation {{ ARGS }}

bench *ARGS:
    uv run python -m tests.performance {{ ARGS }}

# everything at once while one part after another is killed; not part of the tests: `just soak --minutes 20`; or while the exchange and the broker fail: `just soak feed`
soak *ARGS:
    uv run python -m tests.soak {{ ARGS }}

# generate the Flight SQL messages from their .proto file
proto:
    uv run python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. flight_server/protocol/*.proto

demo *ARGS:
    uv run k2 demo {{ ARGS }}

# everything in containers: needs Docker with the compose plugin
up:
    docker compose -f docker/compose.yaml up --build --detach --wait

down:
    docker compose -f docker/compose.yaml down

# pin every version anew, in pyproject.toml and constraints.txt
lock *ARGS:
    uv run --no-project python .ci/lock.py {{ ARGS }}

# docs/settings.md from common/settings.py, the options of docs/tables.md, the tables of docs/flight-sql.md and docs/reliability.md from the tests
docs:
    uv run python docs/tables_page.py
    uv run python docs/settings_page.py
    uv run python docs/sql_page.py
    uv run python docs/flight_sql_page.py
    uv run python docs/reliability_page.py

# all of the above that a change has to pass
ci:
    bash .ci/run
