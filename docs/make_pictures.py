"""Make the pictures of README.md: `python docs/make_pictures.py` (needs the extra `dev` and Chromium).

Runs the README's first commands in a new folder. Writes into docs/pictures: recording.svg, what the terminal shows
(line by line, for those who do not ask for less motion); page.png and page-dark.png, the page with the same question
and its answer.
"""

from __future__ import annotations

import io
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

ROOT = Path(__file__).parents[1]
PICTURES = Path(__file__).with_name("pictures")
WIDTH = 136
PATIENCE = 600.0
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
# Of rich's template; without the fonts, which a browser would fetch from elsewhere.
_FORMAT = re.sub(r"@font-face \{\{.*?\}\}\n", "", Console.export_svg.__kwdefaults__["code_format"], flags=re.DOTALL)


def first_commands() -> list[str]:
    """The commands of README's first block."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme.partition("```console\n")[2].partition("```")[0]
    return [line.removeprefix("$ ") for line in block.splitlines()]


def run(command: str, folder: Path) -> str:
    """What a command of memspan shows."""
    words = [sys.executable, "-m", *shlex.split(command)]
    done = subprocess.run(
        words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True, encoding="utf-8"
    )
    return done.stdout


def recording(shown: list[tuple[str, str]]) -> str:
    """An SVG of commands and what they show: each command after a pause, then its lines."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), highlight=False)
    delays, moment = list[float](), 0.5
    for command, output in shown:
        for line in (Text(f"$ {command}", "bold green"), *map(Text, output.splitlines())):
            rows = line.wrap(console, WIDTH)
            moment += 1.5 if line.style else 0.4
            delays += [moment] * len(rows)
            console.print(*rows, sep="\n")
    lines = "".join(
        f'[clip-path="url(#{{unique_id}}-line-{row})"] {{{{ animation-delay: {delay:.1f}s }}}}\n'
        for row, delay in enumerate(delays)
    )
    moving = (
        "@keyframes shown {{ from {{ opacity: 0 }} }}\n.{unique_id}-matrix text {{ animation: shown 1ms backwards }}\n"
    )
    style = f"@media (prefers-reduced-motion: no-preference) {{{{\n{moving}{lines}}}}}\n</style>"
    return console.export_svg(
        title="memspan", theme=SVG_EXPORT_THEME, unique_id="memspan", code_format=_FORMAT.replace("</style>", style, 1)
    )


@contextmanager
def served(bank: str, folder: Path) -> Iterator[str]:
    """The address of a server of a bank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "memspan", "serve", bank, "--port", str(port)], cwd=folder)
    try:
        wait_for(f"http://127.0.0.1:{port}/ready")
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait()


def wait_for(address: str) -> None:
    """Wait until an address answers."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(address).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    raise TimeoutError(f"{address} does not answer")


def photograph(address: str, question: str) -> None:
    """Ask the page, and take its picture in both colors."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        for scheme, name in (("light", "page.png"), ("dark", "page-dark.png")):
            page = browser.new_page(viewport={"width": 1000, "height": 640}, color_scheme=scheme)
            page.set_default_timeout(1000 * PATIENCE)
            page.goto(address)
            page.locator("#place[data-health=up]").wait_for()
            page.get_by_role("textbox", name="Question").fill(question)
            page.keyboard.press("Enter")
            page.locator(".exchange .evidence").wait_for()
            page.screenshot(path=PICTURES / name, animations="disabled")
        browser.close()


def main() -> None:
    """Write all pictures."""
    commands = first_commands()
    *_, bank, question = shlex.split(commands[-1])
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        shutil.copytree(ROOT / "examples" / "notes", Path(made) / "examples" / "notes")
        shown = [(command, run(command, Path(made))) for command in commands]
        (PICTURES / "recording.svg").write_text(recording(shown), encoding="utf-8", newline="\n")
        with served(bank, Path(made)) as address:
            photograph(address, question)


if __name__ == "__main__":
    main()
