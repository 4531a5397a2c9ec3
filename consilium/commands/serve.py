"""The command `consilium serve`: a finished model answers programs, and people in a browser."""

from pathlib import Path
from typing import Annotated

import typer

from consilium.commands.parameters import examples
from consilium.commands.predict import Model, WeightsDir

app = typer.Typer()


@app.command(
    epilog=examples(
        "consilium serve site",
        "consilium serve model --address 127.0.0.1:9000",
        "consilium serve site --address [::1]:9000 --token-file token",
    )
)
def serve(
    model: Model,
    address: Annotated[
        str, typer.Option(help="Where to listen; one that other machines reach needs a token and TLS.")
    ] = "127.0.0.1:8008",
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="The token that requests must show; readable by you alone.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", help="The server's certificate chain (PEM), for TLS.")
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", help="Its key (PEM); readable by you alone.")] = None,
    host: Annotated[
        list[str] | None, typer.Option(help="A further name by which requests may call it, as through a proxy.")
    ] = None,
    weights_dir: WeightsDir = None,
) -> None:
    """Answer with a finished model over HTTP: POST /predict, and a page for people at /."""
    from consilium.common.host.extras import check_extra

    check_extra("consilium serve", "serve")
    from consilium.serving.serve.listening import listen
    from consilium.serving.serve.running import serve as run

    opened = listen(address, token_file=token_file, certificate=certificate, key=key, hosts=host or ())
    run(model, opened, weights_dir=weights_dir, announce=typer.echo)
