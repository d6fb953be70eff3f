// Building the page. Everything that is shown is an element made here or a text node: no string is ever read as markup.

/**
 * Make an element.
 * @param {string} tag
 * @param {Object} [properties] `on...` functions listen; true sets an empty attribute; false, null and undefined none.
 * @param {...(Node|string|number|null|undefined|false)} children strings become text.
 */
export function element(tag, properties = {}, ...children) {
  return furnished(document.createElement(tag), properties, children);
}

/** Make an element of a drawing, as `element` does. */
export function shape(tag, properties = {}, ...children) {
  return furnished(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
}

function furnished(made, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, String(value));
  }
  made.append(...children.filter(shown));
  return made;
}

/** Replace what an element holds. */
export function fill(parent, ...children) {
  parent.replaceChildren(...children.filter(shown));
  return parent;
}

function shown(child) {
  return child !== null && child !== undefined && child !== false;
}

/** A button that submits nothing. */
export function button(label, onclick, properties = {}) {
  return element("button", { type: "button", onclick, ...properties }, label);
}

/** Something to open: a line, and what stands behind it. */
export function options(label, ...children) {
  return element(
    "details",
    { class: "options" },
    element("summary", {}, label),
    element("div", { class: "options-body" }, ...children),
  );
}

let fields = 0;

/** A control with its label above it, and a hint below. */
export function field(label, control, hint) {
  control.id ||= `field-${++fields}`;
  const help = hint && element("small", { id: `${control.id}-hint` }, hint);
  if (help) control.setAttribute("aria-describedby", help.id);
  return element("div", { class: "field" }, element("label", { for: control.id }, label), control, help);
}

/** A list to choose from; `options` are values, or [value, label]. */
export function select(options, properties = {}) {
  const pairs = options.map((option) => (Array.isArray(option) ? option : [option, option]));
  return element("select", properties, ...pairs.map(([value, label]) => element("option", { value }, label)));
}

/** A message about something that went wrong, in its place. */
export function problem(error) {
  const told = error instanceof Error ? error.message : String(error);
  const sentence = told.charAt(0).toUpperCase() + told.slice(1) + (/[.?!)]$/.test(told) ? "" : ".");
  return element("p", { class: "problem", role: "alert" }, sentence);
}

/** A modal dialog that is gone when it is closed. Escape, and a click beside it, close it. */
export function dialog(title, properties, ...children) {
  const id = `dialog-${++fields}`;
  const close = button("Close", () => made.close(), { class: "quiet" });
  const head = element("header", {}, element("h2", { id }, title), close);
  const made = element("dialog", { "aria-labelledby": id, ...properties }, head, ...children);
  let pressed = null;
  made.addEventListener("pointerdown", (event) => (pressed = event.target));
  made.addEventListener("click", (event) => {
    if (event.target === made && pressed === made) made.close();
  });
  made.addEventListener("close", () => made.remove());
  document.body.append(made);
  made.showModal();
  return made;
}
