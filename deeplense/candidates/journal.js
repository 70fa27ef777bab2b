// A copy of each change in the database of the browser. It is on the disk at once; what localStorage is given may be
// written a minute later, and would be lost if the machine or the browser is killed before.

const DATABASE = "deeplense-candidates";

class Journal {
  // key: of the page; found: is called with the entries that are there already.
  constructor(key, found) {
    this.prefix = `${key}\u0001`;
    this.pending = 0;
    this.opened = this.open().then((database) => {
      this.readAll(database, found);
      return database;
    }, () => null);
  }

  open() {
    return new Promise((done, fail) => {
      const request = indexedDB.open(DATABASE, 1);
      request.onupgradeneeded = () => request.result.createObjectStore("entries");
      request.onsuccess = () => done(request.result);
      request.onerror = request.onblocked = fail;
    });
  }

  readAll(database, found) {
    const store = database.transaction("entries").objectStore("entries");
    const range = IDBKeyRange.bound(this.prefix, `${this.prefix}\uffff`);
    const entries = {};
    store.openCursor(range).onsuccess = ({ target }) => {
      const cursor = target.result;
      if (!cursor) return found(entries);
      entries[String(cursor.key).slice(this.prefix.length)] = cursor.value;
      return cursor.continue();
    };
  }

  async put(pairs) {
    this.pending += 1;
    const end = () => {
      this.pending -= 1;
    };
    const database = await this.opened;
    if (!database) return end();
    try {
      const change = database.transaction("entries", "readwrite", { durability: "strict" });
      change.oncomplete = change.onabort = end;
      for (const [key, entry] of pairs) change.objectStore("entries").put(entry, this.prefix + key);
    } catch {
      end(); // the database was removed; localStorage still keeps all
    }
    return null;
  }
}
