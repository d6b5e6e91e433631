class Lowrank < Formula
  desc "LoRA fine-tuning of language models on an ordinary CPU"
  homepage "@URL@"
  version "@VERSION@"
  license any_of: ["MIT", "Apache-2.0"]

  on_macos do
    on_arm do
      url "@URL@/releases/download/v@VERSION@/lowrank-@VERSION@-aarch64-apple-darwin.tar.gz"
      sha256 "@SHA256:aarch64-apple-darwin@"
    end
    on_intel do
      url "@URL@/releases/download/v@VERSION@/lowrank-@VERSION@-x86_64-apple-darwin.tar.gz"
      sha256 "@SHA256:x86_64-apple-darwin@"
    end
  end
  on_linux do
    on_arm do
      url "@URL@/releases/download/v@VERSION@/lowrank-@VERSION@-aarch64-unknown-linux-musl.tar.gz"
      sha256 "@SHA256:aarch64-unknown-linux-musl@"
    end
    on_intel do
      url "@URL@/releases/download/v@VERSION@/lowrank-@VERSION@-x86_64-unknown-linux-musl.tar.gz"
      sha256 "@SHA256:x86_64-unknown-linux-musl@"
    end
  end

  def install
    bin.install "lowrank"
    man1.install Dir["man/*.1"]
    bash_completion.install "completions/lowrank.bash" => "lowrank"
    zsh_completion.install "completions/_lowrank"
    fish_completion.install "completions/lowrank.fish"
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/lowrank --version")
  end
end
