// Drives the Flight SQL clients of npm: one JSON request a line in, one JSON answer a line out.
// Values are written in the form that tests/support/canonical.py describes.
"use strict";

const readline = require("node:readline");
const { DataType, IntervalUnit, TimeUnit } = require("apache-arrow");
const { FlightSQLClient } = require("@firetiger-oss/flight-sql-client");
const { Client: LanceClient } = require("@lancedb/arrow-flight-sql-client");

const [host, port] = process.argv.slice(2);

function typeText(type) {
  if (DataType.isInt(type)) return `${type.isSigned ? "int" : "uint"}${type.bitWidth}`;
  if (DataType.isFloat(type)) return ["halffloat", "float", "double"][type.precision];
  if (DataType.isUtf8(type)) return "string";
  if (DataType.isBool(type)) return "bool";
  if (DataType.isBinary(type)) return "binary";
  if (DataType.isDecimal(type)) return `decimal128(${type.precision}, ${type.scale})`;
  if (DataType.isDate(type)) return "date32[day]";
  if (DataType.isTime(type)) return `time${type.bitWidth}[${unitText(type.unit)}]`;
  if (DataType.isTimestamp(type)) return `timestamp[${unitText(type.unit)}${type.timezone ? `, tz=${type.timezone}` : ""}]`;
  if (DataType.isFixedSizeList(type)) return `list<${typeText(type.valueType)}>[${type.listSize}]`;
  if (DataType.isList(type)) return `list<${typeText(type.valueType)}>`;
  if (DataType.isMap(type)) return `map<${typeText(type.keyType)}, ${typeText(type.valueType)}>`;
  if (DataType.isInterval(type) && type.unit === IntervalUnit.MONTH_DAY_NANO) return "month_day_nano_interval";
  if (DataType.isStruct(type)) return `struct<${type.children.map((f) => `${f.name}: ${typeText(f.type)}`).join(", ")}>`;
  return String(type);
}

function unitText(unit) {
  return { [TimeUnit.SECOND]: "s", [TimeUnit.MILLISECOND]: "ms", [TimeUnit.MICROSECOND]: "us", [TimeUnit.NANOSECOND]: "ns" }[unit];
}

function fraction(digits) {
  const kept = digits.replace(/0+$/, "");
  return kept ? `.${kept}` : "";
}

// A timestamp comes as a number of milliseconds: a double, which is exact to the microsecond.
function instant(milliseconds, zoned) {
  const micros = BigInt(Math.round(milliseconds * 1000));
  const seconds = (micros - (((micros % 1000000n) + 1000000n) % 1000000n)) / 1000000n;
  const rest = String(micros - seconds * 1000000n).padStart(6, "0");
  return new Date(Number(seconds) * 1000).toISOString().slice(0, 19) + fraction(rest) + (zoned ? "Z" : "");
}

function clockTime(count, unit) {
  const digits = { s: 0, ms: 3, us: 6, ns: 9 }[unit];
  const scale = 10n ** BigInt(digits);
  const seconds = BigInt(count) / scale;
  const two = (number) => String(number).padStart(2, "0");
  const rest = digits ? String(BigInt(count) % scale).padStart(digits, "0") : "";
  return `${two(seconds / 3600n)}:${two((seconds / 60n) % 60n)}:${two(seconds % 60n)}${fraction(rest)}`;
}

// A decimal comes as four 32-bit words, lowest first, in two's complement.
function decimal(words, scale) {
  let value = 0n;
  for (let i = words.length - 1; i >= 0; i--) value = (value << 32n) | BigInt(words[i]);
  value = BigInt.asIntN(words.length * 32, value);
  const digits = String(value < 0n ? -value : value).padStart(scale + 1, "0");
  const text = scale ? `${digits.slice(0, -scale)}.${digits.slice(-scale)}` : digits;
  return value < 0n ? `-${text}` : text;
}

// Months, days and the two halves of the nanoseconds.
function interval([months, days, low, high]) {
  return `${months} months ${days} days ${(BigInt(high) << 32n) | BigInt(low >>> 0)} ns`;
}

class Exact {
  constructor(text) {
    this.text = text;
  }
}

// As Python writes it: a whole float keeps its point.
function float(value) {
  const text = Object.is(value, -0) ? "-0.0" : String(value);
  return new Exact(/^-?\d+$/.test(text) ? `${text}.0` : text);
}

function canonical(value, type) {
  if (value === null || value === undefined) return null;
  if (DataType.isInt(type)) return new Exact(String(value));
  if (DataType.isFloat(type)) return Number.isFinite(value) ? float(value) : String(value);
  if (DataType.isDecimal(type)) return decimal(value, type.scale);
  if (DataType.isTimestamp(type)) return instant(value, type.timezone);
  if (DataType.isDate(type)) return new Date(value).toISOString().slice(0, 10);
  if (DataType.isInterval(type)) return interval(value);
  if (DataType.isTime(type)) return clockTime(value, unitText(type.unit));
  if (DataType.isBinary(type)) return `0x${Buffer.from(value).toString("hex")}`;
  if (DataType.isMap(type)) return [...value].map(([k, v]) => [canonical(k, type.keyType), canonical(v, type.valueType)]);
  if (DataType.isStruct(type)) return Object.fromEntries(type.children.map((f) => [f.name, canonical(value[f.name], f.type)]));
  if (DataType.isList(type) || DataType.isFixedSizeList(type)) return [...value].map((item) => canonical(item, type.valueType));
  return value;
}

// JSON with integers of any size.
function json(value) {
  if (value instanceof Exact) return value.text;
  if (Array.isArray(value)) return `[${value.map(json).join(",")}]`;
  if (value !== null && typeof value === "object")
    return `{${Object.entries(value).map(([k, v]) => `${JSON.stringify(k)}:${json(v)}`).join(",")}}`;
  return JSON.stringify(value);
}

function answerOf(schema, batches) {
  const rows = [];
  for (const batch of batches)
    for (let row = 0; row < batch.numRows; row++)
      rows.push(schema.fields.map((field, index) => canonical(batch.getChildAt(index).get(row), field.type)));
  return { columns: schema.fields.map((field) => [field.name, typeText(field.type)]), rows };
}

const firetiger = new FlightSQLClient({ host, port: Number(port), plaintext: true });
let lance = null;

const CALLS = {
  firetiger: {
    query: async ({ sql }) => {
      const table = await firetiger.execute(sql);
      return answerOf(table.schema, table.batches);
    },
    count: async ({ sql }) => (await firetiger.execute(sql)).numRows,
    tables: async () => firetiger.getTables(),
    actions: async () => (await firetiger.listActions()).map((action) => action.getType()),
  },
  lancedb: {
    query: async ({ sql }) => {
      const batches = await (await lance.query(sql)).collectToArrow();
      return answerOf(batches[0].schema, batches);
    },
    count: async ({ sql }) => (await (await lance.query(sql)).collectToArrow()).reduce((sum, batch) => sum + batch.numRows, 0),
  },
};

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const request = JSON.parse(line);
    let answer;
    try {
      if (request.client === "lancedb") {
        // This client always logs in; there is no way to connect without a password.
        const account = { username: "reader", password: "any" };
        lance ??= await LanceClient.connect({ host: `${host}:${port}`, insecure: true, ...account });
      }
      answer = { answer: await CALLS[request.client][request.call](request) };
    } catch (error) {
      answer = { error: { code: error.code == null ? null : Number(error.code), message: String(error.message) } };
    }
    process.stdout.write(json(answer) + "\n");
  }
  process.exit(0);
}

main();
