"""The two images of this project: built here, built and pushed, or taken as they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pulumi
import pulumi_docker as docker

from controller.image_context import stage
from infra.errors import PreflightError

CHECKOUT = Path("..")  # Pulumi runs the program in its own directory; an absolute path would differ between checkouts
ENTRYPOINT = ["python", "-m", "controller"]  # set on every container: an app image of somebody else may have another
HTTP_PORT = 3000  # on which the controller listens
STOP_SECONDS = 40  # the controller takes up to 30 to finish what is under way


@dataclass(frozen=True)
class ImagesArgs:
    """Where images come from. Without a registry they stay in the engine that built them. `platform` is that of the
    engine or cluster that runs them."""

    stack: str
    app_image: str | None = None  # prebuilt
    sandbox_image: str | None = None  # prebuilt
    registry: str | None = None
    pull_registry: str | None = None  # the cluster's name for it
    username: str | None = None
    password: pulumi.Input[str] | None = None
    platform: str = "linux/amd64"


class Images(pulumi.ComponentResource):
    """The names of both images, as a container or pod takes them; an image that is built here goes by id or digest."""

    app: pulumi.Output[str]
    sandbox: pulumi.Output[str]

    def __init__(self, name: str, args: ImagesArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("ci-fixer-sandbox:infra:Images", name, None, opts)
        self._args = args
        self.app = self._image("app", args.app_image)
        self.sandbox = self._image("sandbox", args.sandbox_image)
        self.register_outputs({"app": self.app, "sandbox": self.sandbox})

    def _image(self, what: str, prebuilt: str | None) -> pulumi.Output[str]:
        if prebuilt is not None:
            return pulumi.Output.from_input(prebuilt)
        args, context = self._args, _context(what)
        repository = f"ci-fixer-sandbox-{what}"
        name = f"{repository}:{args.stack}" if args.registry is None else f"{args.registry}/{repository}:{args.stack}"
        built = docker.Image(
            f"{what}-image",
            image_name=name,
            build=docker.DockerBuildArgs(
                context=context,
                dockerfile=f"{context}/Dockerfile",
                platform=args.platform,
            ),
            registry=self._login(),
            skip_push=args.registry is None,
            # Deleting one does nothing, and would need an engine even if the stack needs only the cluster.
            opts=pulumi.ResourceOptions(parent=self, retain_on_delete=True),
        )
        return built.repo_digest.apply(self._as_pulled)

    def _login(self) -> docker.RegistryArgs | None:
        args = self._args
        if args.registry is None or args.username is None:
            return None
        return docker.RegistryArgs(
            server=args.registry.partition("/")[0], username=args.username, password=args.password
        )

    def _as_pulled(self, digest: str) -> str:
        registry, pulled_from = self._args.registry, self._args.pull_registry
        if registry is None or pulled_from is None:
            return digest
        return pulled_from + digest.removeprefix(registry)


def _context(what: str) -> str:
    """The directory of the build context. The provider hashes every file in it, with its mode."""
    try:
        return str(stage(what, CHECKOUT))
    except OSError as error:
        words = "repair the checkout, or give prebuilt images (appImage, sandboxImage)"
        raise PreflightError(f"the {what} image cannot be built: {error}; {words}") from error
