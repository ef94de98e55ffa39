// Filters the table, and keeps it as the service says. Without it the page is whole, and as old as its loading.
"use strict";
const byId = (id) => document.getElementById(id);
const table = byId("sandboxes"), one = byId("one"), live = byId("live");

function age(then) {
  const seconds = Math.max(0, Math.floor((Date.now() - Date.parse(then)) / 1000));
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "m"]]) {
    if (seconds >= size) return Math.floor(seconds / size) + unit;
  }
  return seconds + "s";
}

function filter() {
  const words = byId("q").value.toLowerCase().split(/\s+/).filter(Boolean), state = byId("state").value;
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    const fits = (!state || row.dataset.state === state) && words.every((word) => row.dataset.text.includes(word));
    row.hidden = !fits;
    shown += fits;
  }
  const text = shown + " shown";
  if (byId("shown").textContent !== text) byId("shown").textContent = text;
  byId("empty").hidden = shown > 0;
}

function replaceRow(id, html) {
  const holder = document.createElement("template");
  holder.innerHTML = html;
  const fresh = holder.content.querySelector("tr"), old = byId("sandbox-" + id);
  if (!old) {
    // A new row comes first. What a reader looks at further down stays where it is: browsers anchor the scrolling.
    table.tBodies[0].prepend(fresh);
    return;
  }
  const links = [...old.querySelectorAll("a")], focused = links.indexOf(document.activeElement);
  old.replaceWith(fresh);
  if (focused >= 0) fresh.querySelectorAll("a")[focused]?.focus({ preventScroll: true });
}

// What is open stays open, what has the focus keeps it, and what is the same is left: somebody may be pressing it.
function refill(place, fresh) {
  for (const old of place.querySelectorAll("details[open]")) {
    fresh.querySelector(`details[data-name="${old.dataset.name}"]`)?.setAttribute("open", "");
  }
  if (fresh.innerHTML.trim() === place.innerHTML.trim()) return;
  const focused = place.contains(document.activeElement) ? document.activeElement : null;
  const name = focused?.closest("details")?.dataset.name, link = [...place.querySelectorAll("a")].indexOf(focused);
  place.replaceChildren(...fresh.childNodes);
  const same = name ? place.querySelector(`details[data-name="${name}"] ${focused.localName}`) : place.querySelectorAll("a")[link];
  same?.focus({ preventScroll: true });
}

let asked = 0, shown = 0;
async function refreshOne() {
  const mine = ++asked;
  try {
    const answer = await fetch(location.pathname), text = answer.ok ? await answer.text() : "";
    if (!text || mine < shown) return; // overtaken by a newer one
    shown = mine;
    refill(one, new DOMParser().parseFromString(text, "text/html").getElementById("one"));
  } catch {
    // The service is away; when it is back, there are news.
  }
}

if (table) {
  const query = new URLSearchParams(location.search);
  byId("q").value = query.get("q") || "";
  byId("state").value = query.get("state") || "";
  byId("filter").addEventListener("submit", (event) => event.preventDefault());
  byId("filter").addEventListener("input", () => {
    filter();
    const kept = new URLSearchParams(Object.entries({ q: byId("q").value, state: byId("state").value }).filter((p) => p[1]));
    history.replaceState(null, "", kept.size ? "?" + kept : location.pathname);
  });
  filter();
  setInterval(() => {
    for (const time of table.querySelectorAll("time")) {
      const text = age(time.dateTime);
      if (time.textContent !== text) time.textContent = text;
    }
  }, 10000);
}

const say = (text) => { if (live.textContent !== text) live.textContent = text; };
let after = (table || one).dataset.after;
function connect() {
  const stream = new EventSource("/events?after=" + after);
  stream.onopen = () => say("Live");
  stream.onerror = () => {
    say("Not connected; trying again …");
    // A lost connection is tried again by the browser. An answer that is an error, as of a proxy before the service, is not.
    if (stream.readyState === EventSource.CLOSED) setTimeout(connect, 3000);
  };
  stream.addEventListener("rows", (event) => {
    after = event.lastEventId;
    const rows = JSON.parse(event.data);
    if (one) {
      if (one.dataset.sandbox in rows) refreshOne();
      return;
    }
    for (const [id, html] of Object.entries(rows)) replaceRow(id, html);
    filter();
  });
  stream.addEventListener("status", (event) => {
    const status = byId("status");
    if (!status) return;
    const fresh = document.createElement("div");
    fresh.innerHTML = JSON.parse(event.data);
    refill(status, fresh);
  });
}
connect();
