// The grades of one person. They are kept in the browser at each change; of two changes of an image the later one counts.

const GRADES = ["A", "B", "C", "not"];
const COLUMNS = ["id", "grade", "note", "grader", "time", "source", "rank", "score"];
const MOST_UNDONE = 1000;

const keyOf = (source, id) => `${source}\u0000${id}`;

class Grades {
  // key: under which they are kept; storage: of the browser; null where there is none.
  // journal: a second copy, with a function put; null for none.
  constructor(key, storage, journal = null) {
    this.key = key;
    this.storage = storage;
    this.journal = journal;
    this.grader = "";
    this.entries = {};
    this.history = [];
    this.isKept = true;
    this.noted = null;
    this.isNamed = false;
    const kept = this.stored();
    if (kept) {
      this.grader = kept.grader;
      this.entries = kept.entries;
      this.history = kept.history;
    }
  }

  stored() {
    try {
      const found = JSON.parse(this.storage.getItem(this.key));
      const isRight = found && typeof found.entries === "object" && Array.isArray(found.history);
      return isRight ? { grader: String(found.grader || ""), entries: found.entries, history: found.history } : null;
    } catch {
      return null;
    }
  }

  // Takes the later change of each image, so that two windows of a page do not lose one another's grades.
  merge(entries) {
    let changed = 0;
    for (const [key, entry] of Object.entries(entries)) {
      const own = this.entries[key];
      if (!own || entry.time > own.time) {
        this.entries[key] = entry;
        changed += 1;
      }
    }
    return changed;
  }

  // Keeps what has changed under these keys.
  save(keys = []) {
    if (keys.length) this.journal?.put(keys.map((key) => [key, this.entries[key]]));
    const kept = this.stored();
    if (kept) {
      this.merge(kept.entries);
      if (!this.isNamed) this.grader = kept.grader || this.grader; // typed in another window
    }
    try {
      const { grader, entries, history } = this;
      this.storage.setItem(this.key, JSON.stringify({ grader, entries, history }));
      this.isKept = true;
    } catch {
      this.isKept = false;
    }
  }

  of(source, id) {
    return this.entries[keyOf(source, id)] || { grade: "", note: "", time: "" };
  }

  // A time that is later than that of the entry before, even where the clock was set back.
  timeAfter(entry) {
    const now = Date.now();
    const before = entry ? Date.parse(entry.time) : 0;
    return new Date(Math.max(now, (before || 0) + 1)).toISOString();
  }

  set(source, id, change) {
    const key = keyOf(source, id);
    const before = this.entries[key];
    const entry = { grade: "", note: "", ...before, ...change, id, source, grader: "", time: this.timeAfter(before) };
    const isSame = before && before.grade === entry.grade && before.note === entry.note;
    if (isSame && !before.grader) return false;
    this.entries[key] = entry;
    if (!this.isTyping(key, change)) {
      this.history.push([[key, Grades.content(before)]]);
      this.history = this.history.slice(-MOST_UNDONE);
    }
    this.save([key]);
    return true;
  }

  // What undoing brings back: grade, note, and the other person whose file they came from.
  static content(entry) {
    return { grade: entry?.grade || "", note: entry?.note || "", grader: entry?.grader || "" };
  }

  // Whether a change goes on with the note of the last change: letters of a note are undone together.
  isTyping(key, change) {
    const isNote = "note" in change && !("grade" in change);
    const isSame = isNote && this.noted === key;
    this.noted = isNote ? key : null;
    return isSame;
  }

  // Takes the last change back; returns the source and the name of an image that was changed.
  undo() {
    const last = (this.history.pop() || []).filter(([key]) => this.entries[key]);
    if (!last.length) return null;
    for (const [key, before] of last) {
      const entry = this.entries[key];
      this.entries[key] = { ...entry, ...before, time: this.timeAfter(entry) };
    }
    this.save(last.map(([key]) => key));
    this.noted = null;
    const { source, id } = this.entries[last[0][0]];
    return { source, id, count: last.length };
  }

  name(grader) {
    this.grader = grader;
    this.isNamed = true;
    this.save();
  }

  clear() {
    const keys = Object.keys(this.entries).filter((key) => this.entries[key].grade || this.entries[key].note);
    this.change(keys.map((key) => [key, { ...this.entries[key], grade: "", note: "" }]));
    return keys.length;
  }

  // Several changes that are undone together.
  change(pairs) {
    if (!pairs.length) return;
    this.history.push(pairs.map(([key]) => {
      return [key, Grades.content(this.entries[key])];
    }));
    for (const [key, entry] of pairs) {
      const own = this.entries[key];
      const isLater = entry.time && (!own || entry.time > own.time);
      this.entries[key] = { ...entry, time: isLater ? entry.time : this.timeAfter(own) };
    }
    this.save(pairs.map(([key]) => key));
  }

  // Takes the grades of a CSV file; sourceOfId says the source of a name, for files without sources. Returns how many
  // were taken, or throws an Error in words for a person.
  read(text, sourceOfId = () => "") {
    const [heads, ...rows] = csvRows(text);
    const lacking = ["id", "grade"].filter((name) => !(heads || []).includes(name));
    if (lacking.length) throw new Error(`the file has no column ${lacking.join(" and ")}: it is not a file of grades`);
    const pairs = [];
    for (const [number, cells] of rows.entries()) {
      const row = Object.fromEntries(heads.map((name, k) => [name, unguarded(cells[k] || "")]));
      if (row.grade && !GRADES.includes(row.grade)) {
        throw new Error(`line ${number + 2} has the grade ${row.grade.slice(0, 20)}; grades are ${GRADES.join(", ")}`);
      }
      const source = row.source || sourceOfId(row.id);
      const key = keyOf(source, row.id);
      const own = this.entries[key];
      const time = Date.parse(row.time) ? new Date(row.time).toISOString() : "";
      const isSame = own && own.grade === row.grade && own.note === (row.note || "");
      if (isSame || (own && (own.grade || own.note) && own.time >= time)) continue;
      const { id, grade, note = "", grader = "" } = row;
      pairs.push([key, { id, source, grade, note, grader, time }]);
    }
    this.change(pairs);
    return pairs.length;
  }

  // A CSV file of all grades and notes; rows says rank and score of the images of this page.
  csv(rows) {
    const entries = Object.entries(this.entries).filter(([, entry]) => entry.grade || entry.note);
    const rank = (key) => (rows.has(key) ? rows.get(key).rank : Infinity);
    entries.sort(([one], [other]) => rank(one) - rank(other) || (one < other ? -1 : 1));
    const lines = entries.map(([key, entry]) => {
      const { rank: place = "", score = "" } = rows.get(key) || {};
      const grader = entry.grader || this.grader;
      const texts = [entry.id, entry.grade, entry.note, grader, entry.time, entry.source].map(guarded);
      return [...texts, place, score].map(quoted).join(",");
    });
    return [COLUMNS.join(","), ...lines, ""].join("\r\n");
  }
}

// A spreadsheet takes a text that begins like this as a formula; an apostrophe before it prevents that.
const isFormula = (text) => /^[=+\-@\t\r]/.test(text) && !/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text);
const guarded = (text) => (isFormula(text.replace(/^'+/, "")) ? `'${text}` : text);
const unguarded = (text) => (/^'+/.test(text) && isFormula(text.replace(/^'+/, "")) ? text.slice(1) : text);
const quoted = (value) => (/[",\r\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value));

// The rows of a CSV file (RFC 4180), each a list of cells; empty lines are left out.
function csvRows(text) {
  const rows = [];
  let row = [];
  let cell = "";
  let isQuoted = false;
  const given = text.replace(/^\ufeff/, "");
  const endRow = () => {
    row.push(cell);
    if (row.length > 1 || row[0]) rows.push(row);
    row = [];
    cell = "";
  };
  for (let k = 0; k < given.length; k += 1) {
    const sign = given[k];
    if (isQuoted) {
      if (sign !== '"') cell += sign;
      else if (given[k + 1] === '"') cell += given[(k += 1)];
      else isQuoted = false;
    } else if (sign === '"' && !cell) isQuoted = true;
    else if (sign === ",") {
      row.push(cell);
      cell = "";
    } else if (sign === "\n") endRow();
    else if (sign !== "\r" || given[k + 1] !== "\n") cell += sign;
  }
  endRow();
  return rows;
}
