# no43 with Nix: package, app, checks and a development shell, from nixpkgs and nothing else.
# Only parsed where the project is tested (there is no Nix daemon there); see CONTRIBUTING.md.
{
  description = "One recipe gives a VM that owns a graphics card, and proves that it works";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable"; # Rust 1.95 or newer

  outputs =
    { self, nixpkgs }:
    let
      systems = [ "x86_64-linux" ]; # QEMU's q35 with VFIO; the lab emulates AMD SVM
      forEach = f: nixpkgs.lib.genAttrs systems (system: f nixpkgs.legacyPackages.${system});
      version = (builtins.fromTOML (builtins.readFile ./Cargo.toml)).workspace.package.version;

      # What the programs start: not linked, found in PATH.
      tools =
        pkgs: with pkgs; [
          qemu
          mmdebstrap
          e2fsprogs
          dosfstools
          mtools
          util-linux
          cpio
          zstd
        ];

      # C libraries of the D-Bus display.
      libraries =
        pkgs: with pkgs; [
          libusb1
          usbredir
        ];

      no43 =
        pkgs:
        pkgs.rustPlatform.buildRustPackage {
          pname = "no43";
          inherit version;
          src = self;
          cargoLock.lockFile = ./Cargo.lock;
          nativeBuildInputs = with pkgs; [
            pkg-config
            makeWrapper
          ];
          buildInputs = libraries pkgs;
          cargoBuildFlags = [
            "-p"
            "no43"
            "-p"
            "no43-guest"
          ];
          doCheck = false; # the tests are a check of their own, below
          postInstall = ''
            wrapProgram $out/bin/no43 --suffix PATH : ${pkgs.lib.makeBinPath (tools pkgs)}
          '';
          meta = {
            description = "One recipe gives a VM that owns a graphics card, and proves that it works";
            license = with pkgs.lib.licenses; [
              mit
              asl20
            ];
            mainProgram = "no43";
            platforms = systems;
          };
        };
    in
    {
      packages = forEach (pkgs: {
        default = no43 pkgs;
      });

      apps = forEach (pkgs: {
        default = {
          type = "app";
          program = "${no43 pkgs}/bin/no43";
        };
      });

      # Rings 1 and 2 of CONTRIBUTING.md: they need neither network nor a machine of their own.
      checks = forEach (pkgs: {
        package = no43 pkgs;
        tests = (no43 pkgs).overrideAttrs (old: {
          pname = "no43-tests";
          doCheck = true;
          cargoTestFlags = [ "--workspace" ];
          nativeCheckInputs = tools pkgs;
          env.INSTA_UPDATE = "no";
        });
        format = pkgs.runCommand "no43-format" { nativeBuildInputs = with pkgs; [ cargo rustfmt ]; } ''
          cd ${self}
          cargo fmt --all --check
          touch $out
        '';
      });

      devShells = forEach (pkgs: {
        default = pkgs.mkShell {
          packages =
            (with pkgs; [
              cargo
              rustc
              clippy
              rustfmt
              rust-analyzer
              cargo-deny
              pkg-config
              pciutils
            ])
            ++ tools pkgs
            ++ libraries pkgs;
        };
      });

      formatter = forEach (pkgs: pkgs.nixfmt-rfc-style);
    };
}
