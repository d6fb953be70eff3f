// Light, dark, or as the device says.

const THEME = "memspan.theme";

export const THEMES = [
  ["", "As the device"],
  ["light", "Light"],
  ["dark", "Dark"],
];

export const theme = () => localStorage.getItem(THEME) ?? "";

export function applyTheme(chosen = theme()) {
  if (chosen) localStorage.setItem(THEME, chosen);
  else localStorage.removeItem(THEME);
  document.documentElement.dataset.theme = chosen;
}
