"""Say which stage of a run is at fault, and what to try.

python -m pipelines.doctor --run runs/demo
"""

from __future__ import annotations

from codegrid.pipelines.running.cli import run_script, say
from codegrid.pipelines.running.use_configs import Doctor


def doctor(settings: Doctor) -> None:
    """Print what is wrong with the parts of a run; with `settings.output` also write doctor.json there."""
    # imported here, so that --help answers before torch is loaded
    from pathlib import Path

    from codegrid.files import write_json
    from codegrid.pipelines.diagnosis.examine import examine
    from codegrid.pipelines.diagnosis.page import as_json, write_page
    from codegrid.pipelines.diagnosis.parts import load_parts
    from codegrid.pipelines.running.device import choose_device
    from codegrid.pipelines.running.run_folder import Run

    parts = load_parts(settings, choose_device(settings.device))
    run = Run(settings.output, settings, **parts.facts()) if settings.output else None
    if run and not run.finished:
        run.start()
    findings, figures = examine(parts, settings)

    def write_results(folder: Path) -> None:
        write_json(folder / "doctor.json", as_json(findings, figures, parts.left_out))

    if run and not run.finished:
        run.finish_with(write_results)
    say(write_page(findings, figures, parts.left_out, parts.folders))


def main() -> None:
    """The command line."""
    run_script(Doctor, doctor)


if __name__ == "__main__":
    main()
