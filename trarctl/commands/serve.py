"""``trarctl serve``: a page to ask trained models, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from trarctl.commands.console import note, say, tell_opened, warn
from trarctl.commands.options import (
    DATA_PANEL,
    OUTPUT_PANEL,
    CkptsOption,
    ConfigOption,
    DeviceOption,
    ExtractorOption,
    OptionalDataOption,
    SetOption,
    WeightsOption,
    option,
)

EPILOG = (
    "Example: trarctl serve --ckpt demo"
    "\n\nSeveral checkpoints answer side by side: trarctl serve --ckpt demo --ckpt demo@1"
    "\n\nPrograms ask by a form: curl -F image=@photo.jpg -F 'question=what color is it?' http://127.0.0.1:7860/api/ask"
)


def serve(
    ckpt: CkptsOption = None,
    data: OptionalDataOption = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    extractor: ExtractorOption = None,
    weights: WeightsOption = None,
    images: Annotated[
        Path | None,
        option("--images", DATA_PANEL, "Folder of the data's images, for examples and --extractor.", metavar="DIR"),
    ] = None,
    gpus: DeviceOption = None,
    host: Annotated[
        str,
        option("--host", OUTPUT_PANEL, "Address to listen on.", metavar="NAME", shows_default=True),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        option(
            "--port", OUTPUT_PANEL, "Port; 0 for any that is free.", metavar="N", min=0, max=65535, shows_default=True
        ),
    ] = 7860,
    max_upload: Annotated[
        int,
        option("--max-upload", OUTPUT_PANEL, "Largest picture, in MB.", metavar="N", min=1, shows_default=True),
    ] = 20,
) -> None:
    """Open a page to ask about pictures, and see how the answers come about."""
    import signal
    import tempfile

    from trarctl.commands.progress import show_progress
    from trarctl.data.features.origin import Stated
    from trarctl.engine.evaluator import Request, recorded_folder
    from trarctl.engine.predictor import open_predictor
    from trarctl.engine.signals import stop_requests
    from trarctl.errors import Stopped
    from trarctl.report.server import (
        API_PATH,
        Desk,
        Served,
        examples_of,
        is_loopback,
        make_app,
        open_socket,
        require_gradio,
        run_app,
    )

    def explain(number: int) -> Stopped:
        return Stopped(f"by {signal.Signals(number).name}; nothing that was asked is kept", number)

    with (
        stop_requests(explain),
        tempfile.TemporaryDirectory(prefix="trarctl-serve-", ignore_cleanup_errors=True) as folder,
        open_socket(host, port) as listening,
    ):
        require_gradio(Path(folder))
        served: dict[str, Served] = {}
        examples: list[list[str]] = []
        named: list[str | None] = [*dict.fromkeys(ckpt or ())]
        for one in named or [None]:
            request = Request(one, data, "", config, tuple(sets or ()), gpus)
            predictor, chosen = open_predictor(request, Stated(extractor, weights, images))
            tell_opened(predictor, chosen)
            with show_progress() as progress:
                predictor.load_extractor(progress)
            note(*predictor.notes)
            served[one or chosen.settings.run.name or chosen.checkpoint.stem] = Served(predictor, chosen.checkpoint)
            examples = examples or examples_of(recorded_folder(chosen), images, Path(folder))
        app = make_app(Desk(served), Path(folder), examples=examples, upload_bytes=max_upload * 1_000_000)
        if not is_loopback(host):
            warn(f"whoever reaches {host} can ask: there is no password, and nothing is encrypted")
        address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        say(f"asking at {address}, programs at {address}{API_PATH}; Ctrl+C ends it")
        run_app(app, listening)
