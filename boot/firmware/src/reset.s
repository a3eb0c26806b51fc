# From the reset vector to Rust. Interrupts stay off and the table of interrupts is empty: an exception of any kind,
# #VC included, is a triple fault and so the end of the machine.

.section .vector, "ax"
.code16
# Other processors of an SNP launch: Linux gives them a state of their own.
    cli
1:  hlt
    jmp 1b
.org 16
.globl reset_vector
reset_vector:
    # jmp to 0xf000:0xf800, the beginning of the next section
    .byte 0xe9
    .word 0xf80d
.org 32

.section .reset, "ax"
.code16
reset:
    cli
    cld
    lidtl %cs:(0xf800 + no_interrupts - reset)
    lgdtl %cs:(0xf800 + segments_pointer - reset)
    movl %cr0, %eax
    andl $0x9fffffff, %eax          # caches on: CD = NW = 0
    orl $1, %eax                    # PE
    movl %eax, %cr0
    ljmpl $0x08, $protected

.balign 8
segments:
    .quad 0
    .quad 0x00cf9b000000ffff        # 0x08: 32-bit code
    .quad 0x00af9b000000ffff        # 0x10: 64-bit code, as Linux wants it
    .quad 0x00cf93000000ffff        # 0x18: data, as Linux wants it
segments_pointer:
    .word 4 * 8 - 1
    .long segments
no_interrupts:
    .word 0
    .long 0

.code32
protected:
    movl $0x18, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    # Without paging every access of an SNP guest is private; all of this memory was validated at launch.
    movl $0xffff0000, %esi
    movl $0x10000, %edi
    movl $image_size_long, %ecx
    rep movsl
    movl $0x80000, %ecx
    subl %edi, %ecx
    shrl $2, %ecx
    xorl %eax, %eax
    rep stosl

    # An SNP guest has a CPUID page that the PSP filled. EBP becomes the upper half of the C-bit, or 0 without SNP.
    xorl %ebp, %ebp
    movl 0x81000, %ebx
    testl %ebx, %ebx
    jz without_snp
    cmpl $64, %ebx
    ja surprise
    movl $0x81010, %esi
2:  cmpl $0x8000001f, (%esi)
    je 3f
    addl $48, %esi
    decl %ebx
    jnz 2b
    jmp surprise
3:  movl 0x1c(%esi), %ecx           # EBX of the leaf: bits 5-0 are the C-bit's number
    andl $0x3f, %ecx
    subl $32, %ecx
    jb surprise
    incl %ebp
    shll %cl, %ebp
    # The host cannot intercept this: SEV, SEV-ES, SNP, and nothing that changes what they mean.
    movl $0xc0010131, %ecx
    rdmsr
    andl $0x7f, %eax
    cmpl $0x07, %eax
    jne surprise
    jmp tables

without_snp:
    # SECURITY: a host could launch an SNP guest with an empty CPUID page, to get all memory used as shared. In such
    # a guest CPUID is a #VC and ends the machine; where the host lets it pass, the processor's own answer leads to
    # SEV_STATUS.
    movl $0x80000000, %eax
    cpuid
    cmpl $0x8000001f, %eax
    jb tables
    movl $0x8000001f, %eax
    cpuid
    testl $0x02, %eax
    jz tables
    movl $0xc0010131, %ecx
    rdmsr
    testl %eax, %eax
    jnz surprise

tables:
    # 4 GiB one to one, in pages of 2 MiB, private but for the window at 4 MiB.
    movl $0x61003, 0x60000
    movl %ebp, 0x60004
    movl $0x61000, %edi
    movl $0x62003, %eax
    movl $4, %ecx
4:  movl %eax, (%edi)
    movl %ebp, 4(%edi)
    addl $8, %edi
    addl $0x1000, %eax
    loop 4b
    movl $0x62000, %edi
    movl $0x83, %eax
    movl $2048, %ecx
5:  movl %eax, (%edi)
    movl %ebp, 4(%edi)
    addl $8, %edi
    addl $0x200000, %eax
    loop 5b
    movl $0, 0x62014

    movl %cr4, %eax
    orl $0x620, %eax                # PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $0x60000, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax                # LME
    wrmsr
    movl %cr0, %eax
    andl $0xfffffff3, %eax          # EM = TS = 0
    orl $0x80010022, %eax           # PG, WP, NE, MP
    movl %eax, %cr0
    ljmpl $0x10, $long_mode

surprise:
    # #UD without a handler.
    ud2

.section .text.long_mode, "ax"
.code64
long_mode:
    movl $0x18, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl $0x70000, %esp
    movl %ebp, %edi
    shlq $32, %rdi
    xorl %ebp, %ebp
    call start
    ud2
