{
  description = "VisCoIN development shells: `nix develop`, or `nix develop .#cuda` to compile the CUDA operations";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { nixpkgs, ... }:
    let
      forSystems = nixpkgs.lib.genAttrs [
        "x86_64-linux"
        "aarch64-linux"
      ];
      pkgsFor =
        system:
        import nixpkgs {
          inherit system;
          config.allowUnfree = true; # CUDA
        };
      # `make setup` installs the pinned wheels into .venv; wheels expect these libraries at run time.
      libraries = pkgs: [
        pkgs.stdenv.cc.cc.lib
        pkgs.zlib
      ];
      tools = pkgs: [
        pkgs.python312
        pkgs.gnumake
        pkgs.git
      ];
      environment = pkgs: {
        # The driver's own libraries lie outside of the store.
        LD_LIBRARY_PATH = "${pkgs.lib.makeLibraryPath (libraries pkgs)}:/run/opengl-driver/lib";
        shellHook = "make setup && . .venv/bin/activate";
      };
    in
    {
      devShells = forSystems (
        system:
        let
          pkgs = pkgsFor system;
          cuda = pkgs.cudaPackages_13; # the major version that the torch wheels are built with
        in
        {
          default = pkgs.mkShell ({ packages = tools pkgs ++ [ pkgs.gcc ]; } // environment pkgs);

          # backendStdenv has the newest gcc that nvcc accepts.
          cuda = pkgs.mkShell.override { stdenv = cuda.backendStdenv; } (
            {
              packages = tools pkgs ++ [ cuda.cudatoolkit ];
              CUDA_HOME = cuda.cudatoolkit;
            }
            // environment pkgs
          );
        }
      );
    };
}
